"""The runtime: noise that does not depend on the batch, batches that shrink, switches that are put back."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from genkit.errors import DeviceError, InputError
from genkit.runtime import Runtime, devices, is_out_of_memory

CPU = torch.device("cpu")


def test_the_cpu_computes_in_float32_unless_told_otherwise():
    assert Runtime.pick("cpu") == Runtime(CPU, torch.float32, False)
    assert Runtime.pick("cpu", "bf16").dtype is torch.bfloat16
    assert Runtime.pick("cpu", torch.float16).dtype is torch.float16


def test_only_a_dtype_that_nobody_asked_for_is_relaxed(monkeypatch):
    native = [getattr(torch.cpu, name)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    assert Runtime.pick("cpu").relaxed is (torch.bfloat16 if any(native) else torch.float32)
    assert Runtime.pick("cpu", "float32").relaxed is torch.float32
    assert Runtime.pick("cpu", "float16").relaxed is torch.float16
    monkeypatch.setenv("GENKIT_DTYPE", "float32")
    assert Runtime.pick("cpu").relaxed is torch.float32


def test_the_environment_is_asked_where_the_caller_is_silent(monkeypatch):
    monkeypatch.setenv("GENKIT_DEVICE", "cpu")
    monkeypatch.setenv("GENKIT_DTYPE", "bfloat16")
    assert Runtime.pick() == Runtime(CPU, torch.bfloat16)
    assert Runtime.pick(dtype="float32") == Runtime(CPU, torch.float32)


def test_without_any_wish_the_best_device_is_picked(monkeypatch):
    monkeypatch.delenv("GENKIT_DEVICE", raising=False)
    assert Runtime.pick().device.type == devices()[0].split(":")[0]


@pytest.mark.parametrize("name", ["cud", "cuda:99", "meta", "", "cpu:x", "\x00"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name, monkeypatch):
    monkeypatch.setenv("GENKIT_DEVICE", name.replace("\x00", "nul") or "nonsense")
    with pytest.raises(DeviceError, match=r"this machine has .*cpu"):
        Runtime.pick(name or None)


@pytest.mark.parametrize("name", ["float8", "FLOAT32", "int8"])
def test_an_unknown_dtype_is_refused_with_the_known_ones(name):
    with pytest.raises(InputError, match="float32, bfloat16 and float16"):
        Runtime.pick("cpu", name)


def test_an_items_noise_is_the_same_alone_and_in_a_batch_of_thirty():
    runtime = Runtime(CPU)
    together = runtime.noise(range(30), (3, 5, 7))
    assert together.shape == (30, 3, 5, 7)
    for seed in (0, 7, 29):
        assert torch.equal(runtime.noise([seed], (3, 5, 7))[0], together[seed])
    assert len({tuple(item.flatten()[:4].tolist()) for item in together}) == 30


def test_noise_is_normal_in_the_runtimes_dtype_and_drawn_the_same_for_every_dtype():
    half, full = Runtime(CPU, torch.bfloat16), Runtime(CPU)
    assert half.noise([1], (64,)).dtype is torch.bfloat16
    assert torch.equal(half.noise([1], (64,)), full.noise([1], (64,)).bfloat16())
    many = full.noise([5], (20_000,))
    assert abs(many.mean()) < 0.03
    assert abs(many.std() - 1) < 0.03


def test_a_generator_is_drawn_on_where_a_seed_begins_anew():
    runtime = Runtime(CPU)
    generator = runtime.generator(3)
    first, second = runtime.noise([generator], (32,)), runtime.noise([generator], (32,))
    assert not torch.equal(first, second)
    assert torch.equal(first, runtime.noise([3], (32,)))
    assert runtime.noise([], (2, 3)).shape == (0, 2, 3)


def test_the_largest_seed_is_a_seed():
    assert Runtime(CPU).generator(2**53 - 1).initial_seed() == 2**53 - 1


class Workshop:
    """Doubles numbers, and asks for more memory than any machine has when there are more than `room` at once."""

    def __init__(self, room: int, exhaust=lambda: torch.empty(2**60)) -> None:
        self.room, self.exhaust = room, exhaust
        self.sizes: list[int] = []

    def __call__(self, batch: Sequence[int]) -> list[int]:
        self.sizes.append(len(batch))
        if len(batch) > self.room:
            self.exhaust()
        return [2 * item for item in batch]


@pytest.mark.parametrize("exhaust", [lambda: torch.empty(2**60), lambda: bytearray(2**62)])
@pytest.mark.parametrize("room", [1, 2, 3, 7, 30])
def test_a_batch_that_does_not_fit_is_halved_and_keeps_its_order(room, exhaust):
    work = Workshop(room, exhaust)
    assert Runtime(CPU).halving(work, list(range(30))) == [2 * i for i in range(30)]
    assert max(work.sizes) == 30
    assert sum(size for size in work.sizes if size <= room) == 30  # nothing is done twice


def test_the_size_that_fitted_is_where_the_next_call_begins():
    runtime, work = Runtime(CPU), Workshop(4)
    runtime.halving(work, list(range(16)))
    work.sizes.clear()
    runtime.halving(work, list(range(16)))
    assert work.sizes == [4, 4, 4, 4]


def test_a_single_item_that_does_not_fit_is_an_error_without_a_chain():
    with pytest.raises(DeviceError, match="no memory for a single item") as caught:
        Runtime(CPU).halving(Workshop(0), [1, 2, 3])
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_tensors_of_the_failed_attempt_are_gone_before_the_next():
    alive: list[weakref.ref[Tensor]] = []

    def work(batch: Sequence[int]) -> list[int]:
        assert all(ref() is None for ref in alive)
        held = torch.zeros(1000)
        alive.append(weakref.ref(held))
        if len(batch) > 1:
            torch.empty(2**60)
        return list(batch)

    gc.disable()
    try:
        assert Runtime(CPU).halving(work, [1, 2, 3, 4]) == [1, 2, 3, 4]
    finally:
        gc.enable()
    assert len(alive) == 6  # 4, 2, then one by one


def test_other_errors_pass_and_an_empty_batch_does_nothing():
    def broken(batch: Sequence[int]) -> list[int]:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        Runtime(CPU).halving(broken, [1, 2])
    assert Runtime(CPU).halving(broken, []) == []
    with pytest.raises(ValueError, match="1 results for a batch of 2"):
        Runtime(CPU).halving(lambda batch: [0], [1, 2])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_exhausted_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) is expected


def switches() -> tuple[object, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.get_float32_matmul_precision(),
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("deterministic", [False, True])
def test_torchs_switches_are_set_while_work_runs_and_put_back(deterministic):
    before = switches()
    runtime = Runtime.pick("cpu", deterministic=deterministic)
    with runtime.inference():
        assert torch.are_deterministic_algorithms_enabled() is deterministic
        assert torch.get_float32_matmul_precision() == "highest"  # TF32 is for CUDA only
        assert not torch.ones(1, requires_grad=True).mul(2).requires_grad
    assert switches() == before
    with pytest.raises(KeyError), runtime.active():
        raise KeyError
    assert switches() == before


def test_determinism_refuses_what_cannot_be_repeated(monkeypatch):
    runtime = Runtime.pick("cpu", deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"]
    with pytest.raises(DeviceError, match="put_ has no repeatable form on cpu"), runtime.active():
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]), accumulate=False)


def test_a_placed_module_is_ready_for_inference():
    module = Runtime(CPU, torch.bfloat16).place(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout()), channels_last=True)
    assert not module.training
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in module.parameters())


def test_the_description_is_words_and_the_same_twice():
    found = Runtime.pick("cpu").describe()
    assert found == Runtime.pick("cpu").describe()
    assert found["device"] == "cpu"
    assert found["dtype"].split("/")[0] == "float32"
    assert Runtime.pick("cpu", "float32").describe()["dtype"] == "float32"
    assert found["deterministic"] == "false"
    assert all(isinstance(value, str) for value in found.values())


def test_a_description_brings_both_dtypes_back():
    again = Runtime.pick("cpu", "float32/bfloat16")
    assert (again.dtype, again.relaxed) == (torch.float32, torch.bfloat16)
    assert Runtime.pick("cpu", again.describe()["dtype"]).relaxed is torch.bfloat16
    with pytest.raises(InputError, match="no dtype"):
        Runtime.pick("cpu", "float32/bf17")


def test_the_cpu_has_free_memory():
    assert Runtime(CPU).free_memory() > 2**20
