"""What happens when memory runs out: fewer at once, then what a pipeline can give up, each said and kept, and no more
than helps. The exhaustion is torch's own: an allocation that no machine can meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from genkit.errors import Cancelled, DeviceError, OutOfMemory
from genkit.media import provenance
from genkit.media.image import Image
from genkit.pipeline import Output, Params, Pipeline, Progress
from genkit.runtime import Runtime, is_out_of_memory, is_sticky

CPU = torch.device("cpu")


class Demanding(nn.Module):
    """A convolution over noise that takes at most `room` values at once; more is asked of the machine in vain."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.ran_out = room, 0
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # [B, 3, H, W]
        if x.numel() > self.room:
            self.ran_out += 1
            torch.empty(2**60)
        return self.layer(x)


class SceneParams(Params):
    side: int = 8


class Scene(Pipeline):
    """Pictures of a network, several at once, whole or in strips of half the height."""

    name = "scene"
    Params: ClassVar[type[Params]] = SceneParams
    factor = 2

    def __init__(self, room: int) -> None:
        super().__init__(None, Runtime(CPU))
        self.network: Any = self.runtime.place(Demanding(room))
        self.strips = 1

    def run(self, batch: Sequence[Any], progress: Progress) -> list[Output]:
        with self.runtime.inference():
            x = self.runtime.noise([params.seed for params in batch], (3, batch[0].side, batch[0].side))
            made = torch.cat([self.network(strip) for strip in x.chunk(self.strips, 2)], 2)
        degraded = f"in {self.strips} strips" if self.strips > 1 else ""
        return [Output(images=[Image.from_tensor(picture.sigmoid())], degraded=degraded) for picture in made]

    def relieve(self) -> str | None:
        if self.strips == 4:
            return None
        self.strips *= self.factor
        return f"works in {self.strips} strips"


def batch(count: int, side: int = 8) -> list[Params]:
    return [SceneParams(seed=seed, side=side) for seed in range(count)]


def pixels(outputs: Sequence[Output]) -> list[bytes]:
    return [output.images[0].pil.tobytes() for output in outputs]


ONE = 3 * 8 * 8  # values of one picture


def test_where_there_is_room_nothing_is_given_up():
    outputs = Scene(4 * ONE).generate(batch(4))
    assert [output.degraded for output in outputs] == [""] * 4
    assert "memory" not in outputs[0].provenance.runtime


def test_fewer_at_once_is_said_and_changes_no_bit_of_a_file(tmp_path):
    whole, halved = Scene(8 * ONE).generate(batch(8)), Scene(3 * ONE).generate(batch(8))
    assert {output.degraded for output in halved} == {"ran 2 at a time"}
    assert {output.degraded for output in whole} == {""}
    whole[5].save(tmp_path / "whole.png")
    halved[5].save(tmp_path / "halved.png")
    assert (tmp_path / "whole.png").read_bytes() == (tmp_path / "halved.png").read_bytes()


def test_a_batch_that_fits_after_all_is_not_called_degraded():
    scene = Scene(2 * ONE)
    assert scene.generate(batch(8))[0].degraded == "ran 2 at a time"
    assert [output.degraded for output in scene.generate(batch(2))] == ["", ""]
    assert scene.generate(batch(3))[2].degraded == "ran 2 at a time"


def test_a_single_item_that_does_not_fit_makes_the_pipeline_give_up_what_it_takes_and_no_more():
    scene = Scene(ONE // 2)
    (output,) = scene.generate(batch(1))
    assert scene.strips == 2
    assert output.degraded == "in 2 strips; works in 2 strips"
    assert scene.network.ran_out == 1
    whole = Scene(ONE).generate(batch(1))
    top, expected = output.images[0].tensor()[:, :3], whole[0].images[0].tensor()[:, :3]
    assert (top - expected).abs().max() < 1e-2  # above the seam


def test_what_shows_in_the_result_is_recorded_and_what_costs_only_time_is_not(tmp_path):
    outputs = Scene(ONE // 2).generate(batch(2))
    path = outputs[1].save(tmp_path / "strips.png")[0]
    assert outputs[1].degraded == "in 2 strips; works in 2 strips; ran 1 at a time"
    assert provenance.read(path).runtime["memory"] == "in 2 strips"


def test_the_level_is_kept_so_that_ten_thousand_jobs_do_not_run_out_ten_thousand_times():
    scene = Scene(ONE // 4)
    scene.generate(batch(1))
    assert (scene.strips, scene.network.ran_out) == (4, 2)
    for seed in range(50):
        assert scene(seed=seed).degraded == "in 4 strips; works in 2 strips; works in 4 strips"
    assert scene.network.ran_out == 2


def test_after_something_was_given_up_more_may_fit_at_once_again():
    scene = Scene(3 * ONE)
    scene.factor = 4
    large = batch(4, side=16)  # one is more than there is room for; in strips two go at once
    assert {output.degraded for output in scene.generate(large)} == {"in 4 strips; works in 4 strips; ran 2 at a time"}


def test_what_fits_nowhere_is_one_line_and_the_items_before_it_are_not_made_twice():
    scene = Scene(2 * ONE)
    made: list[int] = []
    scene.network.layer.register_forward_hook(lambda module, given, output: made.append(len(output)))
    with pytest.raises(
        OutOfMemory, match=r"^cpu has no memory for a single item \(\d+\.\d GB free\): make it"
    ) as error:
        scene.generate([SceneParams(seed=1, side=64)])
    assert error.value.__context__ is None
    assert isinstance(error.value, DeviceError)
    assert (scene.strips, made) == (4, [])
    scene.generate(batch(2))
    assert made == [2, 2, 2, 2]  # in four strips, since nobody loaded it anew


def test_other_errors_give_nothing_up():
    scene = Scene(ONE)

    def broken(*_: Any) -> None:
        raise Cancelled

    scene.network.layer.register_forward_pre_hook(broken)
    with pytest.raises(Cancelled):
        scene.generate(batch(3))
    assert (scene.strips, scene.runtime.shortage.words) == (1, [])


class Planner(Scene):
    """Cuts strips by what is free, as it is asked to do by nobody."""

    def run(self, batch: Sequence[Any], progress: Progress) -> list[Output]:
        self.strips = max(1, 8 * ONE // self.runtime.free_memory())
        return super().run(batch, progress)

    def relieve(self) -> str | None:
        return Pipeline.relieve(self)


def test_a_pipeline_that_plans_by_free_memory_is_told_of_less(monkeypatch):
    monkeypatch.setattr(Runtime, "_free", lambda self: 8 * ONE)
    planner = Planner(ONE // 3)
    (output,) = planner.generate(batch(1))
    assert planner.strips == 4
    assert output.degraded == "in 4 strips; counts on 50% of the free memory; counts on 25% of the free memory"
    with pytest.raises(OutOfMemory):
        planner.generate(batch(1, side=64))


def test_a_copy_of_a_runtime_tells_of_its_shortage_and_keeps_its_own_count():
    import dataclasses

    runtime = Runtime(CPU)
    rows = dataclasses.replace(runtime, _fits=None)

    def work(part: Sequence[int]) -> list[int]:
        if len(part) > 2:
            torch.empty(2**60)
        return list(part)

    rows.halving(work, range(6))
    assert runtime.shortage.words == ["ran 2 at a time"]
    assert (rows._fits, runtime._fits) == (2, None)


# ----------------------------------------------------------------------------------------------------- what an error is


def cause(error: Exception, of: Exception) -> Exception:
    try:
        try:
            raise of
        except Exception as first:
            raise error from first
    except Exception as second:
        return second


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.AcceleratorError("CUDA error: device-side assert triggered\nCUDA kernel errors might be ..."), True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("CUDA error: unspecified launch failure"), True),
        (RuntimeError("CUDA driver error: unknown error"), True),
        (RuntimeError("HIP error: the operation cannot be performed in the present state"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasCreate(handle)`"), True),
        (RuntimeError("Native API failed. Native API returns: 20 (UR_RESULT_ERROR_DEVICE_LOST)"), True),
        (cause(DeviceError("the model broke"), RuntimeError("CUDA error: misaligned address")), True),
        (torch.AcceleratorError("CUDA error: out of memory"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), False),
        (cause(RuntimeError("CUDA error: unknown error"), torch.OutOfMemoryError("CUDA out of memory")), False),
        (OutOfMemory("cuda has no memory for a single item"), False),
        (MemoryError(), False),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), False),
        (torch.AcceleratorError("CUDA error: invalid device ordinal"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("CUDA error: device-side assert triggered"), False),
        (KeyError("x"), False),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_error_that_only_another_process_cures_is_told_from_the_others(error, expected):
    assert is_sticky(error) is expected
    if expected:
        assert not is_out_of_memory(error)


def test_a_sticky_error_is_not_taken_for_exhaustion():
    scene = Scene(ONE)

    def assertion(*_: Any) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    scene.network.layer.register_forward_pre_hook(assertion)
    with pytest.raises(torch.AcceleratorError):
        scene.generate(batch(4))
    assert scene.strips == 1


def test_errors_that_name_each_other_in_a_circle_end():
    one, other = RuntimeError("a"), RuntimeError("b")
    one.__cause__, other.__cause__ = other, one
    assert not is_sticky(one)
