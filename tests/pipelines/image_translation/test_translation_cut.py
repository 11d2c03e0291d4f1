"""CUT: the contrast of patches by a loop, the heads' places and names, mirroring, and that it learns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import learning_kit as kit
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.image_translation.networks.resnet import Layout, ResnetGenerator
from pipelines.image_translation.networks.sampler import PatchSampler, features
from pipelines.image_translation.train.cut import CUT, patch_nce


@pytest.fixture
def data(tmp_path: Path) -> tuple[str, str]:
    a, b = kit.blobs(tmp_path / "a", 4), kit.blobs(tmp_path / "b", 4, seed=1, inverted=True)
    return f"data.a={a}", f"data.b={b}"


def vectors(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_patch_nce_equals_a_loop() -> None:
    queries, keys = vectors(2, 7, 5, seed=0), vectors(2, 7, 5, seed=1)
    terms = []
    for picture in range(2):
        for i in range(7):
            near = [math.exp(float(queries[picture, i] @ keys[picture, j]) / 0.07) for j in range(7)]
            terms.append(-math.log(near[i] / sum(near)))
    assert float(patch_nce(queries, keys, 0.07)) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_a_patch_is_compared_with_its_own_picture_only() -> None:
    queries, keys = vectors(2, 7, 5, seed=0), vectors(2, 7, 5, seed=1)
    apart = [patch_nce(queries[i : i + 1], keys[i : i + 1], 0.07) for i in range(2)]
    torch.testing.assert_close(patch_nce(queries, keys, 0.07), torch.stack(apart).mean())


def test_patch_nce_is_least_where_each_patch_is_its_own_and_moves_queries_only() -> None:
    keys = vectors(1, 9, 16, seed=2)
    assert patch_nce(keys, keys, 0.07) < 0.1 < math.log(9) < patch_nce(keys.roll(1, 1), keys, 0.07)
    queries, keys = vectors(1, 9, 16, seed=3).requires_grad_(), keys.requires_grad_()
    patch_nce(queries, keys, 0.07).backward()
    assert queries.grad is not None
    assert keys.grad is None


def test_sixteen_bits_do_not_reach_the_comparison() -> None:
    queries, keys = vectors(1, 9, 16, seed=0), vectors(1, 9, 16, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = patch_nce(queries, keys, 0.07)
    assert torch.equal(mixed, patch_nce(queries, keys, 0.07))


def test_features_are_those_that_the_generator_makes_on_its_way() -> None:
    torch.manual_seed(0)
    generator = ResnetGenerator(Layout(width=4, blocks=5, antialias_down=True, antialias_up=True))
    seen: dict[int, Tensor] = {}
    for place in (0, 4, 8, 12, 16):
        generator.model[place].register_forward_hook(lambda _, __, y, place=place: seen.update({place: y.clone()}))
    x = torch.rand(1, 3, 32, 32)
    generator(x)
    found = features(generator, x, [0, 4, 8, 12, 16])
    assert [y.shape[1] for y in found] == [3, 8, 16, 16, 16]
    for y, place in zip(found, (0, 4, 8, 12, 16), strict=True):
        torch.testing.assert_close(y, seen[place])


def test_heads_have_the_published_names_and_take_the_patches_that_were_chosen() -> None:
    sampler = PatchSampler([3, 8], 16)
    assert {name: tuple(t.shape) for name, t in sampler.state_dict().items()} == {
        "mlp_0.0.weight": (16, 3), "mlp_0.0.bias": (16,), "mlp_0.2.weight": (16, 16), "mlp_0.2.bias": (16,),
        "mlp_1.0.weight": (16, 8), "mlp_1.0.bias": (16,), "mlp_1.2.weight": (16, 16), "mlp_1.2.bias": (16,),
    }  # fmt: skip
    torch.manual_seed(0)
    maps = [torch.rand(2, 3, 6, 5), torch.rand(2, 8, 2, 2)]
    chosen = sampler.choose(maps, 7)
    assert [len(places) for places in chosen] == [7, 4]
    assert all(len(set(places.tolist())) == len(places) for places in chosen)
    found = sampler(maps, chosen)
    assert [tuple(x.shape) for x in found] == [(2, 7, 16), (2, 4, 16)]
    torch.testing.assert_close(found[0].norm(dim=2), torch.ones(2, 7))
    row, column = divmod(int(chosen[0][3]), 5)
    alone = F.normalize(sampler.heads[0](maps[0][1, :, row, column]), dim=0)
    torch.testing.assert_close(found[0][1, 3], alone)


def test_mirroring_is_undone_before_patches_are_compared(data: Any, tmp_path: Path) -> None:
    task = kit.trainer("fastcut", tmp_path / "run", *data, "patches=4096", "places=[0]").task
    assert isinstance(task, CUT)
    a = torch.rand(1, 3, 32, 32) * 2 - 1
    straight = task.contrast(a, a)
    # At the first place a feature is the picture itself, padded alike on both sides.
    torch.testing.assert_close(task.contrast(a, a.flip(3), mirrored=True), straight)
    assert task.contrast(a, a.flip(3)) > straight + 0.01


def test_fastcut_mirrors_about_half_of_the_pictures_and_cut_none(data: Any, tmp_path: Path) -> None:
    for recipe in ("cut", "fastcut"):
        run = kit.trainer(recipe, tmp_path / recipe, *data, "steps=24", "sample_every=null", "patches=4")
        asked: list[bool] = []
        contrast = run.task.contrast
        run.task.contrast = lambda a, made, mirrored, c=contrast, n=asked: n.append(mirrored) or c(a, made, mirrored)
        run.train()
        assert len(asked) == (48 if recipe == "cut" else 24)
        assert sum(asked) == 0 if recipe == "cut" else 5 < sum(asked) < 19


def test_cut_begins_with_xavier_and_antialiased_networks(data: Any, tmp_path: Path) -> None:
    modules = kit.trainer("cut", tmp_path / "run", *data, "width=32").task.modules
    assert any(name.endswith("filt") for name in modules["G"].state_dict())
    assert any(name.endswith("filt") for name in modules["D"].state_dict())
    weight = modules["G"].model[12].conv_block[1].weight.detach()  # 128 x 128 x 3 x 3
    assert float(weight.std()) == pytest.approx(0.02 * math.sqrt(2 / (2 * 128 * 9)), rel=0.03)
    heads = [m for m in modules["F"].modules() if isinstance(m, nn.Linear)]
    assert not any(m.bias.any() for m in heads)
    assert float(heads[-1].weight.detach().abs().max()) < 0.1


def test_cut_learns_to_invert_colours(tmp_path: Path) -> None:
    more = ("steps=200", "patches=64", "head_width=32")
    untrained, trained, unchanged = kit.distances_to_the_negative("cut", tmp_path, *more)
    assert trained < 0.7 * untrained
    assert trained < 0.4 * unchanged < untrained
