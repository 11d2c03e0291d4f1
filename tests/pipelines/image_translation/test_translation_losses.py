"""The games' sums: what a step of each training does equals the published losses, written out here once more by hand.

Adam's first moment after one step is half of the gradient (1 - 0.5), so the gradients themselves are compared, and with
them the order of the updates: which discriminator a generator's gradient went through.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import learning_kit as kit
import pytest
import torch
import torch.nn.functional as F
from runs_kit import metrics
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from pipelines.image_translation.networks.patch import PatchDiscriminator
from pipelines.image_translation.networks.resnet import Layout, ResnetGenerator
from pipelines.image_translation.train.adversarial import Pool, gan_loss, initialise, rate_schedule


class Step(NamedTuple):
    before: dict[str, nn.Module]
    after: dict[str, nn.Module]
    a: Tensor
    b: Tensor
    numbers: dict[str, float]
    gradients: dict[str, list[Tensor]]


@pytest.fixture
def one_step(tmp_path: Path) -> Any:
    """one_step(recipe, *settings) -> a Step: the first of a run."""

    def do(recipe: str, *settings: str) -> Step:
        a, b = kit.blobs(tmp_path / "a", 4), kit.blobs(tmp_path / "b", 4, seed=1, inverted=recipe != "pix2pix")
        data = (f"data.a={a}", f"data.b={b}", "held_out=0", "sample_every=null", "log_every=1", "ema=null")
        run = kit.trainer(recipe, tmp_path / "run", *data, "steps=1", *settings)
        modules = run.task.modules
        for name, module in modules.items():  # past the published start, where all weights are tiny
            torch.manual_seed(len(name) + ord(name[-1]))
            for p in module.parameters():
                nn.init.normal_(p, 0, 0.15)
        before = copy.deepcopy(modules)
        items = [run.dataset[draw] for draw in run.sampler.batch(0)]
        run.train()
        gradients = {
            name: [2 * optimizer.state[p]["exp_avg"] for p in optimizer.param_groups[0]["params"]]
            for name, optimizer in run.task.optimizers.items()
        }
        a, b = (torch.stack([item[look] for item in items]) for look in "ab")
        return Step(before, modules, a, b, metrics(tmp_path / "run")[0], gradients)

    return do


def assert_gradients(found: list[Tensor], loss: Tensor, *modules: nn.Module) -> None:
    wanted = torch.autograd.grad(loss, [p for module in modules for p in module.parameters()], retain_graph=True)
    assert len(found) == len(wanted)
    largest = max(float(g.abs().max()) for g in wanted)
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5 * largest)


def differs(found: list[Tensor], loss: Tensor, *modules: nn.Module) -> bool:
    wanted = torch.autograd.grad(loss, [p for module in modules for p in module.parameters()], retain_graph=True)
    return any(float((one - two).norm()) > 0.05 * float(two.norm()) > 0 for one, two in zip(found, wanted, strict=True))


def mean_square(x: Tensor, wanted: float) -> Tensor:
    return ((x - wanted) ** 2).mean()


def log_loss(x: Tensor, wanted: float) -> Tensor:
    """-log p, p = 1 / (1 + e^-x) the chance of a real picture; by hand, not by torch's function of that name."""
    p = 1 / (1 + torch.exp(-x))
    return -torch.log(p if wanted else 1 - p).mean()


def test_a_step_of_cyclegan(one_step: Any) -> None:
    step = one_step("cyclegan", "batch_size=2")
    g_a, g_b, d_a, d_b = (step.before[name] for name in ("G_A", "G_B", "D_A", "D_B"))
    a, b = step.a, step.b
    fake_b, fake_a = g_a(a), g_b(b)

    def generators(d_a: nn.Module, d_b: nn.Module) -> Tensor:
        game = mean_square(d_a(fake_b), 1) + mean_square(d_b(fake_a), 1)
        cycle = 10 * (g_b(fake_b) - a).abs().mean() + 10 * (g_a(fake_a) - b).abs().mean()
        identity = 5 * (g_a(b) - b).abs().mean() + 5 * (g_b(a) - a).abs().mean()
        return game + cycle + identity

    loss = generators(d_a, d_b)
    assert step.numbers["train/generators"] == pytest.approx(loss.item(), rel=1e-5)
    assert_gradients(step.gradients["generators"], loss, g_a, g_b)
    # The generators went first: a gradient through the updated discriminators would be another.
    assert differs(step.gradients["generators"], generators(step.after["D_A"], step.after["D_B"]), g_a, g_b)

    judge_b = (mean_square(d_a(b), 1) + mean_square(d_a(fake_b.detach()), 0)) / 2
    judge_a = (mean_square(d_b(a), 1) + mean_square(d_b(fake_a.detach()), 0)) / 2
    assert step.numbers["train/D_A"] == pytest.approx(judge_b.item(), rel=1e-5)
    assert step.numbers["train/D_B"] == pytest.approx(judge_a.item(), rel=1e-5)
    assert_gradients(step.gradients["discriminators"], judge_a + judge_b, d_a, d_b)


def test_identity_may_be_left_out(one_step: Any) -> None:
    step = one_step("cyclegan", "identity=0")
    assert "train/identity" not in step.numbers
    found = {name: step.numbers[f"train/{name}"] for name in ("generators", "G_A", "G_B", "cycle_A", "cycle_B")}
    cycle = 10 * (found["cycle_A"] + found["cycle_B"])
    assert found["generators"] == pytest.approx(found["G_A"] + found["G_B"] + cycle, rel=1e-5)


@pytest.mark.parametrize("direction", ["a-to-b", "b-to-a"])
def test_a_step_of_pix2pix(one_step: Any, direction: str) -> None:
    settings = ("generator=resnet", "norm=instance", "dropout=false", "blocks=1", "batch_size=2", "rate=0.02")
    step = one_step("pix2pix", *settings, f"direction={direction}")
    given, wanted = (step.a, step.b) if direction == "a-to-b" else (step.b, step.a)
    g, d = step.before["G"], step.before["D"]
    made = g(given)
    real, fake = torch.cat([given, wanted], 1), torch.cat([given, made], 1)
    judging = (log_loss(d(real), 1) + log_loss(d(fake.detach()), 0)) / 2
    assert step.numbers["train/D"] == pytest.approx(judging.item(), rel=1e-4)
    assert_gradients(step.gradients["discriminator"], judging, d)

    def generator(d: nn.Module) -> Tensor:
        return log_loss(d(fake), 1) + 100 * (made - wanted).abs().mean()

    # The discriminator went first: the generator's loss is what the updated one says.
    loss = generator(step.after["D"])
    assert step.numbers["train/generator"] == pytest.approx(loss.item(), rel=1e-5)
    assert_gradients(step.gradients["generator"], loss, g)
    assert step.numbers["train/G"] != pytest.approx(log_loss(d(fake), 1).item(), rel=1e-3)


@pytest.mark.parametrize("recipe", ["cut", "fastcut"])
def test_a_step_of_cut(one_step: Any, recipe: str) -> None:
    # As many patches as there are places: which are drawn does not matter then.
    step = one_step(recipe, "batch_size=2", "patches=4096", "equivariance=false")
    g, d, heads = (step.before[name] for name in "GDF")
    a, b = step.a, step.b
    made = g(a)
    judging = (mean_square(d(b), 1) + mean_square(d(made.detach()), 0)) / 2
    assert step.numbers["train/D"] == pytest.approx(judging.item(), rel=1e-5)
    assert_gradients(step.gradients["discriminator"], judging, d)

    def vectors(x: Tensor) -> list[Tensor]:
        found = []
        for place, layer in enumerate(g.model[:13]):
            x = layer(x)
            if place in (0, 4, 12):
                head = heads.get_submodule(f"mlp_{len(found)}")
                y = head(x.permute(0, 2, 3, 1).flatten(1, 2))
                found.append(y / (y.norm(dim=2, keepdim=True) + 1e-12))
        return found

    def contrast(source: Tensor, result: Tensor) -> Tensor:
        """Equations 3 and 4: a loop over places and pictures."""
        terms = []
        for queries, keys in zip(vectors(result), vectors(source), strict=True):
            for q, k in zip(queries, keys.detach(), strict=True):
                chances = torch.softmax(q @ k.T / 0.07, 1)
                terms.append(-torch.log(chances.diagonal()).mean())
        return torch.stack(terms).mean()

    kept = contrast(a, made)
    loss = mean_square(step.after["D"](made), 1)
    loss = loss + ((kept + contrast(b, g(b))) / 2 if recipe == "cut" else 10 * kept)
    assert step.numbers["train/NCE"] == pytest.approx(kept.item(), rel=1e-4)
    assert step.numbers["train/generator"] == pytest.approx(loss.item(), rel=1e-4)
    assert_gradients(step.gradients["generator"], loss, g)
    assert_gradients(step.gradients["heads"], loss, heads)


@pytest.mark.parametrize("wanted", [True, False])
def test_the_two_games(wanted: bool) -> None:
    scores = torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(0)) * 3
    torch.testing.assert_close(gan_loss(scores, wanted, "lsgan"), mean_square(scores, float(wanted)))
    torch.testing.assert_close(gan_loss(scores, wanted, "vanilla"), log_loss(scores, float(wanted)))
    assert gan_loss(torch.full((1,), 200.0), False, "vanilla") == 200  # where 1 - p is no number any more


def test_the_pool_behaves_as_published() -> None:
    pool, size = Pool(50), 50
    torch.manual_seed(0)
    pictures = [torch.full((1, 1, 1, 1), float(i)) for i in range(2050)]
    shown = [int(pool.swap(picture)) for picture in pictures]
    assert shown[:size] == list(range(size))  # while there is room a new picture is shown, and kept
    old = [(i, s) for i, s in enumerate(shown) if s != i]
    assert 0.45 < len(old) / 2000 < 0.55  # then half of the time an old one is shown
    assert all(s < i for i, s in old)
    assert len({s for _, s in old}) == len(old)  # which leaves the pool: none is shown again
    # The new one takes its place; one that is shown at once does not go in.
    entered = set(range(size)) | {i for i, _ in old}
    assert {int(p) for p in pool.pictures} == entered - {s for _, s in old}
    assert len(pool.pictures) == size
    ages = sorted(i - s for i, s in old)
    assert ages[len(ages) // 2] > 20  # any of the fifty, not the latest


def test_the_pool_looks_at_each_picture_of_a_batch_and_keeps_none_of_its_graph() -> None:
    pool = Pool(3)
    made = torch.arange(2.0).view(2, 1, 1, 1).requires_grad_()
    shown = pool.swap(made * 1)
    assert torch.equal(shown, made.detach())
    assert not shown.requires_grad
    assert len(pool.pictures) == 2
    assert torch.equal(Pool(0).swap(made), made.detach())


@pytest.mark.parametrize(("constant", "falling", "length"), [(100, 100, 3), (150, 50, 1)])
def test_the_rate_follows_the_published_formula(constant: int, falling: int, length: int) -> None:
    epochs = constant + falling
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 2e-4)
    schedule = rate_schedule(optimizer, steps=epochs * length, epoch=length, constant=constant / epochs)
    reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 2e-4)
    published = LambdaLR(reference, lambda e: 1.0 - max(0, e + 1 - constant) / float(falling + 1))
    for epoch in range(epochs):
        for _ in range(length):
            assert schedule.get_last_lr() == pytest.approx(published.get_last_lr(), rel=1e-9), epoch
            optimizer.step()
            schedule.step()
        reference.step()
        published.step()
    assert 0 <= schedule.get_last_lr()[0] < 1e-9


def test_a_discriminator_of_three_layers_has_a_map_of_30x30_at_256_px() -> None:
    for antialias in (False, True):
        network = PatchDiscriminator(3, 4, antialias=antialias)
        assert network(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)


@pytest.mark.parametrize("kind", ["normal", "xavier"])
def test_first_weights(kind: Any) -> None:
    torch.manual_seed(0)
    network = ResnetGenerator(Layout(blocks=1, norm="batch"))
    initialise(network, kind=kind)
    block = network.model[10].conv_block[1].weight.detach()  # 256 x 256 x 3 x 3
    # Xavier: gain x sqrt(2 / (fan in + fan out))
    wanted = 0.02 if kind == "normal" else 0.02 * (2 / (2 * 256 * 9)) ** 0.5
    assert float(block.std()) == pytest.approx(wanted, rel=0.01)
    norms = torch.cat([m.weight.detach() for m in network.modules() if isinstance(m, nn.BatchNorm2d)])
    assert float(norms.mean()) == pytest.approx(1, abs=0.003)
    assert float(norms.std()) == pytest.approx(0.02, rel=0.1)
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))


def test_a_network_that_adds_begins_by_adding_nothing() -> None:
    network = ResnetGenerator(Layout(width=4, blocks=1, residual=True))
    initialise(network)
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(network(x), x)
    assert F.l1_loss(network.eval()(x), x) == 0
