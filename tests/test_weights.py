"""Weights: what is read is verified, what is refused is refused in one line, and nothing runs."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from genkit import weights
from genkit.errors import GenkitError, ModelError
from genkit.weights import Model

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.0, 2.0])}


def refused(pattern: str, *args: Any, **kwargs: Any) -> str:
    """Reads and expects one printable line."""
    with pytest.raises(ModelError, match=pattern) as caught:
        weights.read(*args, **kwargs)
    message = str(caught.value)
    assert message.isprintable()
    return message


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor] = TENSORS) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


# ---------------------------------------------------------------------------------------------- reading and writing


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "m.safetensors"
    weights.write(path, TENSORS, {"licence": "Apache-2.0"})
    assert same(weights.read(path))
    assert weights.metadata(path) == {"licence": "Apache-2.0"}
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


def test_the_same_tensors_and_metadata_are_the_same_bytes(tmp_path):
    about = {f"näme {i}": f'value \\ " {i}\u2028' for i in range(12)}
    for name in ("a", "b"):
        weights.write(tmp_path / f"{name}.safetensors", TENSORS, about)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert weights.metadata(tmp_path / "a.safetensors") == about
    assert same(weights.read(tmp_path / "a.safetensors"))


def test_tensors_that_share_memory_or_have_gaps_are_written(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tied = {"a": base, "b": base, "c": base.T, "d": base[:, ::2], "half": base.bfloat16()}
    weights.write(tmp_path / "m.safetensors", tied)
    assert same(weights.read(tmp_path / "m.safetensors"), tied)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "m.safetensors"
    weights.write(path, TENSORS)
    with pytest.raises(Exception):  # noqa: B017, PT011 - safetensors' own complaint about the metadata
        weights.write(path, TENSORS, {"number": 3})  # type: ignore[dict-item]
    assert same(weights.read(path))
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_disk_that_takes_no_more_is_one_line_and_leaves_nothing(tmp_path):
    """A limit on the size of files stands in for a full disk: it needs no rights, and fails at the same write."""
    code = """
import resource, signal, torch
from genkit import weights
from genkit.errors import GenkitError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    weights.write("m.safetensors", {"a": torch.zeros(100_000)})
except GenkitError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout.startswith("MediaError 'm.safetensors': cannot be written (File too large)"), done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "wrapped",
    [
        TENSORS,
        {"state_dict": TENSORS, "epoch": 3},
        {"model": {"state_dict": TENSORS}, "optimizer": {"lr": 0.1}},
        {"params_ema": TENSORS, "params": {"a.weight": torch.zeros(1)}},
        {f"module.{name}": tensor for name, tensor in TENSORS.items()},
        {name: nn.Parameter(tensor) for name, tensor in TENSORS.items()},
    ],
    ids=["bare", "state_dict", "nested", "ema", "data-parallel", "parameters"],
)
def test_pickled_checkpoints_are_read_out_of_their_wrappings(tmp_path, wrapped, zipped):
    torch.save(wrapped, tmp_path / "m.pth", _use_new_zipfile_serialization=zipped)
    found = weights.read(tmp_path / "m.pth")
    assert same(found)
    assert not any(tensor.requires_grad for tensor in found.values())


def test_a_folder_is_read_by_its_index_or_its_only_file(tmp_path):
    (alone := tmp_path / "alone").mkdir()
    save_file(TENSORS, alone / "x.safetensors")
    (alone / "config.json").write_text("{}")
    assert same(weights.read(alone))

    (sharded := tmp_path / "sharded").mkdir()
    for i, (name, tensor) in enumerate(TENSORS.items()):
        save_file({name: tensor}, sharded / f"m-{i}.safetensors")
    refused("several models", sharded)
    index = {"weight_map": {name: f"m-{i}.safetensors" for i, name in enumerate(TENSORS)}}
    (sharded / "m.safetensors.index.json").write_text(json.dumps(index))
    assert same(weights.read(sharded))
    (sharded / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../alone/x.safetensors"}}))
    refused("outside its folder", sharded)
    (empty := tmp_path / "empty").mkdir()
    refused("holds no model", empty)


# ------------------------------------------------------------------------------------------------------ malicious


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ""])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_in_it_is_refused_and_does_not_run(tmp_path, zipped, suffix):
    evidence = tmp_path / "ran"
    path = tmp_path / f"m{suffix}"
    torch.save({"a": torch.ones(1), "b": Payload(evidence)}, path, _use_new_zipfile_serialization=zipped)
    message = refused(r"pickle that holds more than tensors \(\w+\.mkdir\)", path)
    assert "safetensors.torch.save_file" in message
    assert not evidence.exists()


def test_a_pickle_under_the_name_of_safetensors_does_not_run(tmp_path):
    path = tmp_path / "m.safetensors"
    torch.save(Payload(tmp_path / "ran"), path)
    refused("damaged", path)
    assert not (tmp_path / "ran").exists()


def test_a_training_checkpoint_with_its_arguments_is_refused_with_the_class_named(tmp_path):
    torch.save({"state_dict": TENSORS, "args": argparse.Namespace(lr=1)}, tmp_path / "m.pth")
    refused(r"argparse\.Namespace.*where you trust it", tmp_path / "m.pth")


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(tmp_path):
    """Strides of zero: a kilobyte on disk, a terabyte once somebody copies it."""
    torch.save({"a": torch.zeros(1).expand(2**20, 2**18)}, tmp_path / "m.pth")
    refused("claims more than the file holds", tmp_path / "m.pth")


@pytest.mark.parametrize("value", [{}, {"epoch": 3}, [torch.ones(1)], torch.ones(1), {"a": torch.ones(2).to_sparse()}])
def test_a_checkpoint_without_named_dense_tensors_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "m.pth")
    refused("no named tensors|sparse", tmp_path / "m.pth")


# -------------------------------------------------------------------------------------------------------- damaged


def safetensors_file(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


BROKEN = {
    "huge header": ({}, b"", 2**63),
    "header longer than the file": ({}, b"", 1000),
    "header over the limit": ({}, b"", 2**30),
    "no JSON": (b"{nonsense", b"", None),
    "nested without end": (b'{"a":' * 100_000, b"", None),
    "a list": ([1, 2], b"", None),
    "overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), None),
    "gap": ({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12), None),
    "cut short": ({"a": entry(0, 400)}, bytes(12), None),
    "more than stated": ({"a": entry(0, 4)}, bytes(12), None),
    "shape too large": ({"a": entry(0, 4, [2**40, 2**20])}, bytes(4), None),
    "negative shape": ({"a": entry(0, 4, [-1, -1])}, bytes(4), None),
    "negative offset": ({"a": entry(-4, 0, [1])}, bytes(4), None),
    "unknown type": ({"a": entry(0, 4, [1], "F99")}, bytes(4), None),
    "offsets missing": ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4), None),
    "offsets as text": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}, bytes(4), None),
    "metadata no mapping": ({"__metadata__": [1], "a": entry(0, 4)}, bytes(4), None),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_safetensors_header_is_one_line(tmp_path, case):
    header, data, length = BROKEN[case]
    path = safetensors_file(tmp_path / "m.safetensors", header, data, length)
    refused("is damaged", path)
    with pytest.raises(ModelError, match="is damaged"):
        weights.metadata(path)


@pytest.mark.parametrize("writer", ["safetensors", "pth", "legacy"])
def test_a_file_cut_anywhere_is_one_line(tmp_path, writer):
    path = tmp_path / ("m.safetensors" if writer == "safetensors" else "m.pth")
    if writer == "safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=writer == "pth")
    whole = path.read_bytes()
    for size in {0, 1, 7, 8, 9, 60, len(whole) // 2, len(whole) - 1}:
        path.write_bytes(whole[:size])
        refused("is damaged|is no model file|holds more than tensors", path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"", "empty"),
        (b"just words in a file", "something else"),
    ],
)
@pytest.mark.parametrize("name", ["m.pth", "m.bin"])
def test_what_is_no_model_is_named(tmp_path, content, named, name):
    (tmp_path / name).write_bytes(content)
    refused(f"no model file: it is .*{named}", tmp_path / name)


def test_a_git_lfs_pointer_is_named_whatever_its_suffix(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused("Git LFS", tmp_path / "m.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_not_a_number_in_the_weights_is_refused(tmp_path, dtype):
    bad = {"a": torch.ones(3, dtype=dtype), "b": torch.tensor([1.0, float("nan")], dtype=dtype)}
    save_file(bad, tmp_path / "m.safetensors")
    refused("tensor 'b' holds NaN", tmp_path / "m.safetensors")
    assert weights.read(tmp_path / "m.safetensors", allow_nan=True)["b"].isnan().any()


def test_infinity_integers_and_empty_tensors_are_weights_too(tmp_path):
    fine = {"mask": torch.tensor([0.0, float("-inf")]), "ids": torch.arange(3), "none": torch.zeros(0)}
    save_file(fine, tmp_path / "m.safetensors")
    assert same(weights.read(tmp_path / "m.safetensors"), fine)


def test_a_missing_file_and_a_pipe_are_refused_at_once(tmp_path):
    refused("does not exist", tmp_path / "none.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    refused("no ordinary file", tmp_path / "pipe.safetensors")


# ------------------------------------------------------------------------------------------------------ references

MODELS = {
    "small": Model("shipped:genkit/py.typed", "for tests", "0 B", "Apache-2.0"),
    "vgg": Model("torchvision:vgg19", "for tests", "548 MB", "BSD-3-Clause"),
}


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A package that ships a model."""
    package = tmp_path / "shipping_package"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    save_file(TENSORS, package / "weights" / "m.safetensors")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield {"small": Model("shipped:shipping_package/weights/m.safetensors", "for tests", "1 KB", "Apache-2.0")}
    sys.modules.pop("shipping_package", None)


def test_an_alias_a_shipped_file_and_a_path_lead_to_the_same_file(shipped, tmp_path):
    found = weights.locate("small", shipped)
    assert same(weights.read(found))
    assert weights.locate(shipped["small"].ref) == found
    assert weights.locate(found) == found
    assert weights.here("small", shipped)
    assert weights.digest("small", shipped) == weights.digest(found)


def test_a_shipped_folder_is_a_model_as_a_file_is(shipped, tmp_path):
    folder = tmp_path / "shipping_package" / "weights"
    models = {"whole": Model("shipped:shipping_package/weights", "for tests", "1 KB", "Apache-2.0")}
    assert weights.locate("whole", models) == folder
    assert weights.here("whole", models)
    assert weights.digest("whole", models) == weights.digest(folder)
    assert not weights.here("shipped:shipping_package/elsewhere")


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("smal", "did you mean 'small'"),
        ("nothing-like-it", "aliases here are small, vgg"),
        ("./gone", "does not exist; check the path"),
        ("gone.safetensors", "does not exist; check the path"),
        ("/a/b/c", "does not exist; check the path"),
        ("", "is no model"),
        ("a\x00b", "is no model"),
        ("shipped:no_such_package/x", "not installed"),
        ("shipped:genkit/../../etc/passwd", "out of its package"),
        ("shipped:genkit/none.safetensors", "is missing; install"),
        ("torchvision:vgg190", "torchvision has no model 'vgg190'"),
        ("torchvision:vgg19@V9", "has no weights 'V9'; it has IMAGENET1K_V1"),
        ("hub:a b", "is no hub id"),
        ("hub:../x", "is no hub id|not on this machine"),
    ],
)
def test_a_reference_that_leads_nowhere_is_one_line_with_the_remedy(ref, message):
    with pytest.raises(ModelError, match=message) as caught:
        weights.locate(ref, MODELS)
    assert str(caught.value).isprintable()


def test_a_folder_of_the_same_name_is_not_taken_for_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("checkpoints").mkdir()
    with pytest.raises(ModelError, match="write hub:checkpoints/mine"):
        weights.locate("checkpoints/mine")
    Path("checkpoints/mine").mkdir()
    assert weights.locate("checkpoints/mine") == Path("checkpoints/mine")


def test_a_pipe_is_no_model(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="no ordinary file"):
        weights.locate(tmp_path / "pipe")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A hub cache laid out as huggingface_hub does it, in offline mode."""
    from huggingface_hub import constants

    commit = "a" * 40
    repository = tmp_path / "hub" / "models--org--name"
    (snapshot := repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    save_file(TENSORS, snapshot / "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return commit


def test_a_hub_model_that_was_fetched_once_needs_no_network(hub_cache):
    assert same(weights.read(weights.locate("hub:org/name:model.safetensors")))
    assert weights.here("org/name")
    assert weights.here("org/name@main:model.safetensors")
    assert weights.digest("org/name") == f"hub:org/name@{hub_cache}"
    assert weights.digest("hub:org/name:model.safetensors") == f"hub:org/name@{hub_cache}:model.safetensors"


def test_of_a_hub_model_the_files_can_be_picked_from_their_list(hub_cache):
    seen = []

    def choose(names):
        seen.extend(names)
        return names[:1]

    folder = weights.locate("org/name", patterns=choose)
    assert seen == ["model.safetensors"]
    assert same(weights.read(folder))

    def refuse(names):
        raise ModelError("nothing for us")

    with pytest.raises(ModelError, match="nothing for us"):
        weights.locate("org/name", patterns=refuse)


def test_a_hub_model_that_is_not_here_says_how_to_get_it_offline(hub_cache):
    assert not weights.here("org/other")
    assert weights.digest("org/other") == "hub:org/other@main"
    for ref in ("org/other", "org/other:model.safetensors", "org/name@v2"):
        with pytest.raises(ModelError, match=r"offline mode is on \(HF_HUB_OFFLINE\): `hf download org/"):
            weights.locate(ref)


def test_a_torchvision_file_is_found_where_torch_keeps_it_and_checked(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not weights.here("vgg", MODELS)
    assert weights.digest("vgg", MODELS) == "torchvision:vgg19-dcbb9e9d.pth"
    with pytest.raises(
        ModelError, match=r"vgg19-dcbb9e9d.pth is not on this machine.*--features-weights FILE"
    ) as caught:
        weights.locate("vgg", MODELS)
    assert str(tmp_path) in str(caught.value)
    path = tmp_path / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth"
    path.parent.mkdir(parents=True)
    torch.save(TENSORS, path)
    with pytest.raises(ModelError, match="damaged"):
        weights.locate("vgg", MODELS)


def test_the_digest_is_of_the_content_and_follows_a_change(tmp_path):
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(TENSORS, a)
    b.write_bytes(a.read_bytes())
    before = weights.digest(a)
    assert before.startswith("sha256:")
    assert weights.digest(b) == before
    a.write_bytes(a.read_bytes() + b"x")
    assert weights.digest(a) != before
    whole = weights.digest(tmp_path)
    b.rename(tmp_path / "c.safetensors")
    assert weights.digest(tmp_path) != whole


# -------------------------------------------------------------------------------------------------------- fitting


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def test_tensors_that_fit_go_in_in_the_modules_dtype():
    source, target = net(), net().bfloat16()
    weights.load_into(target, source.state_dict(), name="x")
    assert torch.equal(target[0].weight, source[0].weight.bfloat16())


def test_batch_counts_may_be_missing():
    state = {name: tensor for name, tensor in net().state_dict().items() if "num_batches" not in name}
    weights.load_into(net(), state, name="x")


def test_a_module_on_the_meta_device_takes_the_tensors_themselves():
    source = net()
    with torch.device("meta"):
        target = net()
    weights.load_into(target, source.state_dict(), name="x")
    assert torch.equal(target(torch.ones(1, 3, 5, 5)), source(torch.ones(1, 3, 5, 5)))


def test_what_does_not_fit_is_counted_and_named_and_nothing_is_loaded():
    target = net()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    state = dict(net().state_dict())
    state["extra.weight"] = state.pop("0.bias")
    state["0.weight"] = torch.zeros(8, 3, 3, 3)
    with pytest.raises(ModelError) as caught:
        weights.load_into(target, state, name="photo.pth")
    assert str(caught.value) == (
        "model photo.pth does not fit Sequential: 1 missing (0.bias), 1 unexpected (extra.weight), "
        "1 of another shape (0.weight [8, 3, 3, 3] for [4, 3, 3, 3])"
    )
    assert same(dict(target.state_dict()), before)


@pytest.mark.parametrize(
    ("key", "family"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "a Stable Diffusion checkpoint (one file)"),
        ("down_blocks.0.resnets.0.conv1.weight", "a diffusers U-Net or autoencoder"),
        ("lora_unet_down_blocks_0.lora_down.weight", "a LoRA"),
        ("unet.down_blocks.0.attn.to_q.lora_A.weight", "a LoRA"),
        ("model.10.conv_block.1.weight", "a CycleGAN ResNet generator"),
        ("model.model.1.model.2.weight", "a pix2pix U-Net generator"),
        ("features.3.squeeze.weight", "a torchvision SqueezeNet"),
        ("features.0.weight", "a torchvision VGG or AlexNet"),
        ("res1.conv1.conv2d.weight", "a fast-neural-style TransformerNet"),
        ("something.else", ""),
    ],
)
def test_the_wrong_architecture_is_called_by_its_name(key, family):
    assert weights.looks_like([key, "z.unrelated"]) == family
    with pytest.raises(ModelError) as caught:
        weights.load_into(net(), {key: torch.zeros(1)}, name="x")
    assert str(caught.value).endswith(f"; it looks like {family}" if family else "(" + key + ")")


def test_every_error_is_a_genkit_error_whatever_the_bytes(tmp_path):
    """Bytes flipped all over a checkpoint: an error of ours or tensors, never anything else."""
    path = tmp_path / "m.pth"
    torch.save(TENSORS, path)
    whole = bytearray(path.read_bytes())
    for at in range(0, len(whole), max(1, len(whole) // 60)):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        with contextlib.suppress(GenkitError):
            weights.read(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no file modes")
def test_a_file_that_is_written_can_be_read_by_whom_others_can(tmp_path):
    (tmp_path / "other").touch()
    weights.write(tmp_path / "x.safetensors", {"x": torch.ones(2)}, {"a": "1", "b": "2"})
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
