"""The networks are the published ones: as many weights, and the same numbers as their formulas written out.

The formulas below know nothing of the modules: they walk through a checkpoint's tensors by name.
"""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
import translation_kit as kit
from torch import Tensor, nn

from pipelines.image_translation.networks import modes, patch, pixel, resnet, stargan, unet
from pipelines.image_translation.networks.modes import as_published, has_modes
from pipelines.image_translation.recognise import recognise

Tensors = dict[str, Tensor]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def picture(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# -------------------------------------------------------------------------------------------------- counts and shapes


def test_a_discriminator_of_three_layers_gives_a_map_of_30_for_256_px():
    for norm, antialias in (("instance", False), ("batch", False), ("instance", True)):
        network = patch.PatchDiscriminator(3, 2, 3, norm, antialias=antialias).eval()
        with torch.no_grad():
            assert network(picture(1, 3, 256, 256)).shape == (1, 1, 30, 30)


def test_a_score_of_the_patch_discriminator_sees_70_px():
    network = patch.PatchDiscriminator(1, 2, 3, "batch").eval()  # eval: batch norm that does not mix places
    x = picture(1, 1, 256, 256).requires_grad_()
    network(x)[0, 0, 15, 15].backward()
    seen = x.grad[0, 0].nonzero()
    low, high = seen.min(0).values, seen.max(0).values
    assert (high - low + 1).tolist() == [70, 70]


def test_a_pixel_discriminator_sees_one_pixel():
    network = pixel.PixelDiscriminator(pixel.Layout(channels=3, width=4)).eval()
    x = picture(1, 3, 8, 8).requires_grad_()
    scores = network(x)
    assert scores.shape == (1, 1, 8, 8)
    scores[0, 0, 3, 4].backward()
    assert x.grad[0].abs().sum(0).nonzero().tolist() == [[3, 4]]


def test_the_stargan_discriminator_scores_places_and_labels():
    network = stargan.StarganDiscriminator(stargan.CriticLayout(width=2, layers=4, side=32, labels=7))
    scores, labels = network(picture(2, 3, 32, 32))
    assert scores.shape == (2, 1, 2, 2)
    assert labels.shape == (2, 7)


@pytest.mark.parametrize("layout", [resnet.Layout(width=2, blocks=1), resnet.Layout(width=2, blocks=1, halvings=3),
                                    resnet.Layout(width=2, blocks=1, antialias_down=True, antialias_up=True),
                                    resnet.Layout(1, 4, width=2, blocks=0, halvings=1),
                                    unet.Layout(width=2, downs=3), unet.Layout(4, 1, width=2, downs=5)])  # fmt: skip
def test_a_generator_takes_sides_of_its_multiple_down_to_the_smallest(layout):
    network = (resnet.ResnetGenerator if isinstance(layout, resnet.Layout) else unet.UnetGenerator)(layout).eval()
    for h, w in ((network.smallest, network.smallest), (network.smallest, network.smallest + 3 * network.multiple)):
        with torch.no_grad():
            made = network(picture(1, layout.channels_in, h, w))
        assert made.shape == (1, layout.channels_out, h, w)
        assert made.abs().max() <= 1


# ------------------------------------------------------------------------------------------------- formulas written out


def norm_of(x: Tensor, t: Tensors, name: str, *, batch: bool) -> Tensor:
    if not batch:
        return F.instance_norm(x)
    shape = (1, -1, 1, 1)
    mean, var = (t[f"{name}.running_{what}"].view(shape) for what in ("mean", "var"))
    weight, bias = (t[f"{name}.{what}"].view(shape) for what in ("weight", "bias"))
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def reflected(x: Tensor, by: int) -> Tensor:
    return F.pad(x, (by,) * 4, mode="reflect")


def conv(x: Tensor, t: Tensors, name: str, **options: int) -> Tensor:
    return F.conv2d(x, t[f"{name}.weight"], t.get(f"{name}.bias"), **options)


def halved(x: Tensor, t: Tensors, name: str) -> Tensor:
    return F.conv2d(reflected(x, 1), t[f"{name}.filt"], stride=2, groups=x.shape[1])


def doubled(x: Tensor, t: Tensors, name: str) -> Tensor:
    """CUT: padded by its edge, transposed convolution, cropped by one on each side."""
    wide = F.conv_transpose2d(
        F.pad(x, (1,) * 4, mode="replicate"), t[f"{name}.filt"], stride=2, padding=2, groups=x.shape[1]
    )
    return wide[..., 1:-1, 1:-1]


def resnet_formula(x: Tensor, t: Tensors, *, blocks: int, batch: bool, dropout: bool, antialias: bool) -> Tensor:
    x = F.relu(norm_of(conv(reflected(x, 3), t, "model.1"), t, "model.2", batch=batch))
    at = 4
    for _ in range(2):
        x = conv(x, t, f"model.{at}", stride=1 if antialias else 2, padding=1)
        x = F.relu(norm_of(x, t, f"model.{at + 1}", batch=batch))
        at += 3
        if antialias:
            x = halved(x, t, f"model.{at}")
            at += 1
    second = 6 if dropout else 5
    for _ in range(blocks):
        name = f"model.{at}.conv_block."
        y = F.relu(norm_of(conv(reflected(x, 1), t, f"{name}1"), t, f"{name}2", batch=batch))
        x = x + norm_of(conv(reflected(y, 1), t, f"{name}{second}"), t, f"{name}{second + 1}", batch=batch)
        at += 1
    for _ in range(2):
        if antialias:
            x = conv(doubled(x, t, f"model.{at}"), t, f"model.{at + 1}", padding=1)
            at += 1
        else:
            weight, bias = t[f"model.{at}.weight"], t.get(f"model.{at}.bias")
            x = F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)
        x = F.relu(norm_of(x, t, f"model.{at + 1}", batch=batch))
        at += 3
    return torch.tanh(conv(reflected(x, 3), t, f"model.{at + 1}"))


@pytest.mark.parametrize("name", [name for name in kit.GENERATORS if kit.CASES[name].kind == "resnet"])
def test_a_resnet_is_its_formula(name):
    options = kit.CASES[name].options
    tensors, x = kit.thin(name), picture(2, 3, 24, 16)
    network = recognise(tensors).build()
    formula = resnet_formula(
        x,
        tensors,
        blocks=options.get("blocks", 9),
        batch=options.get("norm") == "batch",
        dropout=bool(options.get("dropout")),
        antialias=bool(options.get("antialias")),
    )
    close(network(x), formula)


def unet_formula(x: Tensor, t: Tensors, downs: int, *, batch: bool) -> Tensor:
    def level(x: Tensor, name: str, inside: int) -> Tensor:
        """What is made of x, beside x."""
        y = conv(F.leaky_relu(x, 0.2), t, f"{name}.1", stride=2, padding=1)
        up = 3
        if inside:
            y, up = level(norm_of(y, t, f"{name}.2", batch=batch), f"{name}.3.model", inside - 1), 5
        y = F.conv_transpose2d(F.relu(y), t[f"{name}.{up}.weight"], t.get(f"{name}.{up}.bias"), stride=2, padding=1)
        return torch.cat([x, norm_of(y, t, f"{name}.{up + 1}", batch=batch)], 1)

    y = level(conv(x, t, "model.model.0", stride=2, padding=1), "model.model.1.model", downs - 2)
    weight, bias = t["model.model.3.weight"], t["model.model.3.bias"]
    return torch.tanh(F.conv_transpose2d(F.relu(y), weight, bias, stride=2, padding=1))


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_unet_is_its_formula(norm):
    tensors, x = kit.drawn(kit.unet(4, 6, norm)), picture(2, 3, 64, 128)
    close(recognise(tensors).build()(x), unet_formula(x, tensors, 6, batch=norm == "batch"))


def test_stargan_is_its_formula():
    tensors = kit.thin("stargan")
    x, labels = picture(2, 3, 16, 24), torch.tensor([[0.0, 1, 0, 1, 1], [1, 0, 0, 0, 0]])

    def normed(x: Tensor, name: str) -> Tensor:
        return norm_of(x, tensors, name, batch=True)

    y = torch.cat([x, labels[:, :, None, None].expand(2, 5, 16, 24)], 1)
    y = F.relu(normed(conv(y, tensors, "main.0", padding=3), "main.1"))
    for at in (3, 6):
        y = F.relu(normed(conv(y, tensors, f"main.{at}", stride=2, padding=1), f"main.{at + 1}"))
    for block in range(9, 15):
        name = f"main.{block}.main"
        z = F.relu(normed(conv(y, tensors, f"{name}.0", padding=1), f"{name}.1"))
        y = y + normed(conv(z, tensors, f"{name}.3", padding=1), f"{name}.4")
    for at in (15, 18):
        y = F.relu(normed(F.conv_transpose2d(y, tensors[f"main.{at}.weight"], stride=2, padding=1), f"main.{at + 1}"))
    close(recognise(tensors).build()(x, labels), torch.tanh(conv(y, tensors, "main.21", padding=3)))


def test_halving_weighs_each_value_and_its_neighbours_1_2_1():
    x = picture(1, 2, 6, 7)
    wide = F.pad(x, (1,) * 4, mode="reflect")
    expected = torch.zeros(1, 2, 3, 4)
    for row, column in itertools.product(range(3), range(4)):
        square = wide[..., 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
        weights = torch.tensor([1.0, 2, 1]).outer(torch.tensor([1.0, 2, 1])) / 16
        expected[..., row, column] = (square * weights).sum((-1, -2))
    close(resnet.Down(2)(x), expected)


def test_doubling_lies_three_quarters_at_the_nearer_value_with_edges_repeated():
    x = picture(1, 2, 3, 4)

    def along(x: Tensor) -> Tensor:  # the last axis
        before, after = torch.cat([x[..., :1], x[..., :-1]], -1), torch.cat([x[..., 1:], x[..., -1:]], -1)
        return torch.stack([(3 * x + before) / 4, (3 * x + after) / 4], -1).flatten(-2)

    close(resnet.Up(2)(x), along(along(x).mT).mT)


# ------------------------------------------------------------------------------------------------ as its authors ran it


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def published(network: nn.Module, x: Tensor, *seeds: int) -> Tensor:
    with torch.no_grad(), as_published(network, generators(*seeds)):
        return network(x)


def test_as_published_normalises_as_train_mode_does_to_one_picture():
    network = recognise(kit.drawn(kit.resnet(4, 2, "batch"))).build()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = picture(3, 3, 16, 20)
    made = published(network, x, 1, 2, 3)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    used = network(x)
    network.train()
    for i in range(3):
        close(made[i : i + 1], network(x[i : i + 1]))
    assert (used - made).abs().max() > 1e-3, "running statistics would do the same, so the test shows nothing"


def test_as_published_stargan_takes_the_statistics_of_each_picture():
    network = recognise(kit.drawn(kit.stargan(2, 4, 1))).build()
    x, labels = picture(2, 3, 16, 16), torch.eye(2)
    with torch.no_grad(), as_published(network, generators(0, 1)):
        made = network(x, labels)
    assert (made - network(x, labels)).abs().max() > 1e-3
    close(made, network.train()(x, labels))


@pytest.mark.parametrize("shapes", [kit.unet(2, 6), kit.resnet(2, 2, dropout=True)], ids=["unet", "resnet"])
def test_a_picture_does_not_depend_on_its_batch_and_follows_from_its_seed(shapes):
    network = recognise(kit.drawn(shapes)).build()
    x = picture(3, 3, 64, 64)
    together = published(network, x, 5, 6, 7)
    for i, seed in enumerate((5, 6, 7)):
        close(together[i : i + 1], published(network, x[i : i + 1], seed))
    same = published(network, x[:1].repeat(2, 1, 1, 1), 5, 6)
    assert (same[0] - same[1]).abs().max() > 1e-3
    close(same[:1], together[:1])
    assert torch.equal(network(x[:1]), network(x[:1])), "outside there is no dropout"


def test_dropout_drops_half_and_keeps_the_mean():
    layer = modes.Dropout(0.5).eval()
    x = torch.ones(2, 8, 64, 64)
    with as_published(layer, generators(1, 2)):
        y = layer(x)
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert abs(y.mean().item() - 1) < 0.02
    assert not torch.equal(y[0], y[1])
    assert torch.equal(layer(x), x)


def test_dropout_is_where_pix2pix_has_it_and_can_be_left_off():
    network = unet.UnetGenerator(unet.Layout(width=2))
    found = [name for name, layer in network.named_modules() if isinstance(layer, nn.Dropout)]
    depths = sorted(name.count("model.3") for name in found)
    assert depths == [3, 4, 5], "levels 4, 5 and 6 of 0 to 7, of which 512 go in and out at full width"
    network = recognise(kit.drawn(kit.unet(2, 6))).build()
    x = picture(1, 3, 64, 64)
    with as_published(network, None):
        first, again = network(x), network(x)
    assert torch.equal(first, again)


def test_the_modes_end_with_the_block_even_by_an_error():
    network = recognise(kit.drawn(kit.resnet(2, 1, "batch"))).build()
    x = picture(1, 3, 8, 8)
    before = network(x)
    with pytest.raises(KeyError), as_published(network, generators(1)):
        raise KeyError
    assert torch.equal(network(x), before)


def test_only_networks_with_batch_norm_dropout_or_statistics_have_two_modes():
    assert not has_modes(resnet.ResnetGenerator(resnet.Layout(width=2, blocks=1)))
    assert has_modes(resnet.ResnetGenerator(resnet.Layout(width=2, blocks=1, dropout=True)))
    assert has_modes(resnet.ResnetGenerator(resnet.Layout(width=2, blocks=1, norm="batch")))
    assert has_modes(unet.UnetGenerator(unet.Layout(width=2, downs=5)))
    assert has_modes(stargan.StarganGenerator(stargan.Layout(width=2)))


def test_training_is_that_of_the_plain_layers():
    """In train mode a batch is normalised as a whole and its running statistics move, as nn.BatchNorm2d's do."""
    own, plain = modes.BatchNorm(4).train(), nn.BatchNorm2d(4).train()
    x = picture(3, 4, 5, 5)
    assert torch.equal(own(x), plain(x))
    assert torch.equal(own.running_mean, plain.running_mean)
