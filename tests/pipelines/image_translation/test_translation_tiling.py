"""Tiles make the picture that one piece makes: in every network, at every edge, with statistics of the whole."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import translating_kit
from torch import Tensor, nn

from genkit.errors import Cancelled, DiskFull
from pipelines.image_translation import tiling
from pipelines.image_translation.networks import resnet, unet
from pipelines.image_translation.networks.modes import as_published
from pipelines.image_translation.program import Program
from pipelines.image_translation.regions import Norm, Part, Span, Window, reflected

CPU = torch.device("cpu")
AMPLE = 1 << 40  # bytes


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files for kept layers would be."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def core(name: str) -> tuple[nn.Module, int]:
    """A network as tiles go through it, and its channels."""
    made = translating_kit.network(name)
    if name == "stargan":
        return made.get_submodule("main"), 3 + translating_kit.LABELS
    return made, made.layout.channels_in  # type: ignore[union-attr, return-value]


def mode(network: nn.Module, published: bool) -> contextlib.AbstractContextManager[None]:
    return as_published(network, [torch.Generator().manual_seed(3)]) if published else contextlib.nullcontext()


def scene(channels: int, height: int, width: int) -> Tensor:
    seen = [translating_kit.picture(height, width, seed) for seed in range(4)]
    return torch.cat(seen)[None, :channels] * 2 - 1


def through(network: nn.Module, x: Tensor, tile: int, free: int = AMPLE, step: tiling.Step = lambda *_: None) -> Tensor:
    with torch.inference_mode():
        plan = tiling.Plan(Program(network, x.shape[1]), *x.shape[2:], tile)
        return tiling.tiled(plan, x, device=CPU, dtype=torch.float32, free=free, step=step)


# ------------------------------------------------------------------------------------------------ tiles and the whole


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("name", translating_kit.NETWORKS)
def test_tiles_equal_the_whole(name: str, published: bool) -> None:
    network, channels = core(name)
    x = scene(channels, 128, 256)
    with mode(network, published), torch.inference_mode():
        whole = network(x)
    for tile in (37, 64, 200):
        with mode(network, published):
            assert (through(network, x, tile) - whole).abs().max() < 2e-5, tile
    assert whole.std() > 0.05  # there is something to be equal to


@pytest.mark.parametrize("name", ["cyclegan", "cut", "residual", "stargan"])
def test_any_part_of_a_step_is_that_part_of_the_whole(name: str) -> None:
    network, channels = core(name)
    x = scene(channels, 40, 56)
    with torch.inference_mode():
        program = Program(network, channels)
        shapes = program.shapes(40, 56)
        values = [x]
        for rule, parents, shape in zip(program.rules[1:], program.parents[1:], shapes[1:], strict=True):
            if isinstance(rule, Norm) and rule.measured:
                variance, mean = torch.var_mean(values[parents[0]][0], (1, 2), correction=0)
                rule.statistics = mean, variance
            whole = Part(Span(0, shape.height), Span(0, shape.width))
            values.append(rule.apply([values[n] for n in parents], whole, shapes[parents[0]]))
            for rows, columns in [((0, 1), (0, 1)), ((0, 3), (shape.width - 1, shape.width)), ((2, 5), (1, 4))]:
                part = Part(Span(*rows), Span(*columns))
                of = shapes[parents[0]]
                need = Part(rule.needs(part.rows, of.height), rule.needs(part.columns, of.width))
                made = rule.apply([need.of(values[n]) for n in parents], part, of)
                torch.testing.assert_close(made, part.of(values[-1]), rtol=0, atol=1e-5)
        torch.testing.assert_close(values[program.result], network(x), rtol=0, atol=2e-5)


def test_statistics_are_those_of_the_whole_picture() -> None:
    network, _ = core("cyclegan")
    x = scene(3, 96, 120)
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [
        layer.register_forward_hook(
            lambda _, inputs, __: seen.append(torch.var_mean(inputs[0][0].double(), (1, 2), correction=0))
        )
        for layer in network.modules()
        if isinstance(layer, nn.InstanceNorm2d)
    ]
    with torch.inference_mode():
        network(x)
        for hook in hooks:
            hook.remove()
        program = Program(network, 3)
        plan = tiling.Plan(program, 96, 120, 32)
        tiling.tiled(plan, x, device=CPU, dtype=torch.float32, free=AMPLE, step=lambda *_: None)
    norms = [rule for rule in program.rules if isinstance(rule, Norm)]
    assert len(norms) == len(seen) == 3 + 2 * 6 + 2
    for norm, (variance, mean) in zip(norms, seen, strict=True):
        mean_here, variance_here = norm.statistics
        torch.testing.assert_close(mean_here, mean.float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(variance_here, variance.float(), rtol=1e-4, atol=1e-6)


def test_no_seam_is_seen_where_tiles_on_their_own_leave_one() -> None:
    """The jump across a seam, over the jump between other neighbours: about 1 where there is none."""
    network, _ = core("cyclegan")
    x = scene(3, 256, 256)
    with torch.inference_mode():
        whole = network(x)
        made = through(network, x, 64)
        tiles = [[network(part) for part in band.split(64, 3)] for band in x.split(64, 2)]
    alone = torch.cat([torch.cat(band, 3) for band in tiles], 2)

    def jump(y: Tensor) -> float:
        beyond = (y - whole).diff(dim=3).abs().amax((0, 1, 2))  # of what the picture itself does not have
        return float(beyond[63::64].max())

    assert jump(alone) > 0.1
    assert jump(made) < 2e-5


# ----------------------------------------------------------------------------------------------- memory and arithmetic


def test_a_tile_takes_no_more_memory_in_a_larger_picture() -> None:
    program = Program(resnet.ResnetGenerator(resnet.Layout()).eval(), 3)
    small, large = (tiling.Plan(program, side, side, 512) for side in (2048, 8192))
    assert small.work(4) == pytest.approx(large.work(4), rel=0.01)
    assert large.work(4) < tiling.peak(program, 8192, 8192, 4) / 100


@pytest.mark.parametrize(
    ("network", "most"),
    [
        (resnet.ResnetGenerator(resnet.Layout()), 0.4),
        (resnet.ResnetGenerator(resnet.Layout(width=24, halvings=3, blocks=4, residual=True)), 0.3),
        (unet.UnetGenerator(unet.Layout()), 0.5),
    ],
    ids=["cyclegan", "residual", "unet"],
)  # fmt: skip
def test_layers_are_kept_only_where_they_are_small(network: nn.Module, most: float) -> None:
    with as_published(network.eval(), None):
        program = Program(network, 3)
    plan = tiling.Plan(program, 4096, 4096, 1024)
    assert plan.scratch(4) < most * tiling.peak(program, 4096, 4096, 4)


def test_tiles_cost_an_eighth_more_arithmetic() -> None:
    """CycleGAN's nine blocks at 4096 px, counted: multiplications of the convolutions."""
    network = resnet.ResnetGenerator(resnet.Layout()).eval()
    program = Program(network, 3)
    plan = tiling.Plan(program, 4096, 4096, 1024)

    def cost(place: int, part: Part) -> int:
        weight = getattr(program.rules[place], "weight", None)
        if weight is None:
            return 0
        scale = 1 if isinstance(program.rules[place], Window) else 4  # a transposed one works on its input
        return weight.numel() * (part.rows.end - part.rows.start) * (part.columns.end - part.columns.start) // scale

    whole = sum(cost(n, Part(Span(0, s.height), Span(0, s.width))) for n, s in enumerate(plan.shapes))
    there: set[int] = set()
    made = 0
    for target in plan.targets:
        for part in plan.parts(target):
            wanted = plan.wanted(target, part, there)
            made += sum(cost(place, here) for place, here in wanted.items() if place not in there)
        there |= {target} & plan.kept
    assert made / whole == pytest.approx(1.125, abs=0.01)


def test_kept_layers_on_disk_make_the_same_picture_and_leave_nothing(scratch: Path) -> None:
    network, _ = core("cyclegan")
    x = scene(3, 64, 96)
    seen: list[int] = []

    def step(*_: Any) -> None:
        seen.extend(len(list(folder.iterdir())) for folder in scratch.iterdir())

    assert torch.equal(through(network, x, 32, free=0, step=step), through(network, x, 32))
    assert seen  # there was a folder
    assert set(seen) == {0}  # and its files had lost their names
    assert list(scratch.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no way here to take place on a disk")
def test_a_full_disk_is_met_before_it_is_written_to(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    network, _ = core("cyclegan")
    with pytest.raises(DiskFull, match=r"has no room for 0\.0 GB: set TMPDIR to a larger disk"):
        through(network, scene(3, 64, 64), 32, free=0)
    assert list(scratch.iterdir()) == []


# ----------------------------------------------------------------------------------------------- progress and stopping


def test_every_tile_is_a_step_and_stopping_leaves_nothing(scratch: Path) -> None:
    network, _ = core("residual")
    x = scene(3, 64, 96)
    calls: list[tuple[int, int, str]] = []
    through(network, x, 32, step=lambda *call: calls.append(call))
    assert [done for done, _, _ in calls] == list(range(1, calls[0][1] + 1))
    assert len({total for _, total, _ in calls}) == 1
    assert calls[0][2].startswith("pass 1 of ")

    def stop(done: int, total: int, words: str) -> None:
        calls.append((done, total, words))
        if done == 3:
            raise Cancelled

    calls.clear()
    with pytest.raises(Cancelled):
        through(network, x, 32, free=0, step=stop)
    assert len(calls) == 3
    assert list(scratch.iterdir()) == []


# -------------------------------------------------------------------------------------------------------- reflections


def test_reflection_goes_back_and_forth_for_ever() -> None:
    assert reflected(-4, 8, 3).tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1]
    assert reflected(-2, 3, 1).tolist() == [0] * 5
    row = torch.arange(7.0)[None, None]
    assert torch.equal(row[..., reflected(-6, 13, 7)], nn.functional.pad(row, (6, 6), mode="reflect"))
