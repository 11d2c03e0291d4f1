"""`genkit export` of generators: onnxruntime gives torch's numbers at sizes and batches that were not traced."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from genkit import exporting, weights
from pipelines.image_translation.loading import load_generator
from pipelines.image_translation.networks import patch, resnet, stargan, unet
from pipelines.image_translation.networks.modes import as_published
from pipelines.image_translation.recognise import header

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

NETWORKS: dict[str, tuple[str, nn.Module]] = {
    "resnet": ("resnet", resnet.ResnetGenerator(resnet.Layout(width=4, blocks=1))),
    "residual": ("resnet", resnet.ResnetGenerator(resnet.Layout(width=4, blocks=1, residual=True))),
    "batch-norm": ("resnet", resnet.ResnetGenerator(resnet.Layout(width=4, blocks=1, norm="batch"))),
    "cut": ("resnet", resnet.ResnetGenerator(resnet.Layout(width=4, blocks=1, antialias_down=True, antialias_up=True))),
    "pix2pix": ("unet", unet.UnetGenerator(unet.Layout(width=2, downs=6))),
    "stargan": ("stargan", stargan.StarganGenerator(stargan.Layout(width=4, blocks=1, labels=3))),
}


def saved(name: str, folder: Path) -> Path:
    """A network with weights at random, running statistics too: large enough that the parts matter."""
    kind, network = NETWORKS[name]
    random = torch.Generator().manual_seed(3)
    tensors = {
        key: value if not value.is_floating_point() or key.endswith("filt") else _drawn(key, value, random)
        for key, value in network.state_dict().items()
    }
    path = folder / f"{name}.safetensors"
    weights.write(path, tensors, header(kind, network.layout))
    return path


def _drawn(key: str, value: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    drawn = torch.randn(value.shape, generator=random) * 0.2
    return drawn.abs() + 0.5 if "running_var" in key else drawn


def both(model: Path, file: Path, batch: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same random pictures through the network, as published but without dropout, and through the file."""
    found = load_generator(model)
    random = torch.Generator().manual_seed(9)
    given = [torch.rand(batch, found.channels_in, height, width, generator=random) * 2 - 1]
    given += [torch.randint(0, 2, (batch, found.labels), generator=random).float()] if found.labels else []
    with torch.inference_mode(), as_published(found.network, None):
        expected = found.network(*given)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    assert names == ["image", "labels"][: len(given)]
    (result,) = session.run(["translated"], {name: one.numpy() for name, one in zip(names, given, strict=True)})
    return expected, torch.from_numpy(result)


# The two that hold nothing which the others do not hold too are slow: a graph takes seconds to trace.
SLOW = ("resnet", "batch-norm")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NETWORKS])
def test_the_file_gives_the_networks_numbers_at_another_size_and_batch(name: str, tmp_path: Path) -> None:
    model = saved(name, tmp_path)
    done = exporting.export(str(model), tmp_path / "out.onnx")
    assert done.difference is not None
    assert done.difference < 1e-4
    expected, result = both(model, done.file, batch=4, height=192, width=128)
    assert expected.std() > 0.01  # a picture, and not the same value everywhere
    assert (expected - result).abs().max() < 1e-4
    alone = both(model, done.file, batch=1, height=192, width=128)
    assert (alone[0] - alone[1]).abs().max() < 1e-4
    assert bool(done.notes) == (name == "pix2pix")  # where there is dropout it is said that the file has none


def test_the_file_says_what_it_is_and_nothing_of_this_machine(run: Any, tmp_path: Path) -> None:
    model, file = saved("stargan", tmp_path), tmp_path / "out.onnx"
    done = run("export", model, "--to", "onnx", "-o", file, "--opset", 20, "--json")
    assert done.status == 0
    told = json.loads(done.out)
    assert told["shapes"]["image"] == ["batch", 3, "height", "width"]
    assert told["shapes"]["labels"] == ["batch", 3]
    proto = onnx.load(file)
    about = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(about["layout"]) == {"kind": "stargan", **asdict(NETWORKS["stargan"][1].layout)}
    assert (about["height_multiple"], about["pipeline"]) == ("4", "image-translation")
    assert about["model_digest"] == weights.digest(model)
    assert "-1..1" in about["image"]
    assert proto.opset_import[0].version == 20
    assert str(tmp_path).encode() not in file.read_bytes()
    assert b".py" not in file.read_bytes()
    again = exporting.export(str(model), tmp_path / "again.onnx", opset=20, check=False)
    assert again.difference is None
    assert again.file.read_bytes() == file.read_bytes()


def test_results_that_differ_leave_no_file(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genkit import _onnx

    monkeypatch.setattr(_onnx, "LIMIT", 0.0)
    model, file = saved("residual", tmp_path), tmp_path / "out.onnx"
    file.write_bytes(b"what was there")
    status, out, err = run("export", model, "-o", file, "--quiet")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "differs from the network's by" in err
    assert file.read_bytes() == b"what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx", "residual.safetensors"]


def test_a_discriminator_is_refused(run: Any, tmp_path: Path) -> None:
    torch.save(patch.PatchDiscriminator(width=4).state_dict(), tmp_path / "latest_net_D.pth")
    status, out, err = run("export", tmp_path / "latest_net_D.pth", "-o", tmp_path / "out.onnx")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "no generator but a discriminator" in err
    assert not (tmp_path / "out.onnx").exists()


def test_aliases_can_be_named(run: Any, tmp_path: Path) -> None:
    assert {"noto-to-blob", "blob-to-noto"} <= set(exporting.aliases("onnx"))
    assert exporting.owner("noto-to-blob").name == "image-translation"
    status, _, err = run("export", "noto-to-blobb", "-o", tmp_path / "out.onnx")
    assert status == 2
    assert "did you mean 'noto-to-blob'?" in err
