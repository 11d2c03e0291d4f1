"""From a file or a folder to a generator: every way in which people keep checkpoints loads as it is, and what is no
generator, damaged or ambiguous is refused in one line that names it and the remedy."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import translation_kit as kit

from genkit import weights
from genkit.errors import ModelError
from pipelines.image_translation.loading import describe, load_generator
from pipelines.image_translation.models import DEFAULT, MODELS
from pipelines.image_translation.networks.resnet import Layout, ResnetGenerator
from pipelines.image_translation.recognise import header

TINY = kit.resnet(4, 1)


def saved(path: Path, value: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path, **options)
    return path


def refusal(ref: str | Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_generator(ref)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", kit.GENERATORS)
def test_a_published_generator_loads_from_its_file(tmp_path, name):
    case = kit.CASES[name]
    tensors = kit.thin(name)
    found = load_generator(saved(tmp_path / "latest_net_G.pth", OrderedDict(tensors)))
    assert found.kind == case.kind
    assert found.words == case.words.replace("64 channels", "4 channels")
    assert (found.channels_in, found.channels_out) == (3, 3)
    assert found.labels == (5 if name == "stargan" else 0)
    sides = {"unet 256": (256, 256), "unet 256 instance": (256, 256), "unet 128": (128, 128)}
    assert (found.multiple, found.smallest) == sides.get(name, (4, 8))
    assert found.modes == (name in {"dropout", "batch", "batch dropout", "unet 256", "unet 128", "stargan"})
    assert not found.network.training
    assert all(not parameter.requires_grad for parameter in found.network.parameters())
    for key, value in found.network.state_dict().items():
        assert torch.equal(value, tensors[key]), key


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda t: {"state_dict": t},
        lambda t: {"model": {f"module.{key}": value for key, value in t.items()}, "epoch": 7},
        lambda t: {f"module.{key}": value for key, value in t.items()},
        lambda t: {key: value.half() for key, value in t.items()},
        lambda t: {key: torch.nn.Parameter(value) for key, value in t.items()},
    ],
    ids=["state_dict", "model and module", "module", "half", "parameters"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_the_usual_wrappings_come_off_in_both_of_torchs_formats(tmp_path, wrapped, zipped):
    tensors = kit.drawn(TINY)
    path = saved(tmp_path / "a.pth", wrapped(tensors), _use_new_zipfile_serialization=zipped)
    state = load_generator(path).network.state_dict()
    for key, value in tensors.items():
        torch.testing.assert_close(state[key], value, rtol=1e-3, atol=1e-3)


def test_genkits_own_file_says_what_it_is(tmp_path):
    torch.manual_seed(0)
    layout = Layout(width=4, blocks=1, halvings=3, residual=True)
    network = ResnetGenerator(layout).eval()
    path = tmp_path / "own.safetensors"
    about = header("resnet", layout, direction="a-to-b", training={"cycle": 10.0})
    weights.write(path, {key: value.half() for key, value in network.state_dict().items()}, about)
    found = load_generator(path)
    assert (found.layout, found.multiple, found.smallest) == (layout, 8, 16)
    assert found.about["direction"] == "a-to-b"
    x = torch.rand(1, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(found.network(x), network(x), rtol=1e-2, atol=1e-2)
    said = describe(path)
    assert said is not None
    assert (said["direction"], said["training"]) == ("a-to-b", {"cycle": 10.0})
    assert said["layout"]["residual"] is True


# ---------------------------------------------------------------------------------------------------------- in a folder


def test_the_generator_of_a_checkpoints_folder_is_found(tmp_path):
    for name in ("latest_net_D.pth", "latest_net_F.pth", "5_net_D.pth"):
        saved(tmp_path / name, kit.drawn(kit.patch(width=2)))
    saved(tmp_path / "5_net_G.pth", kit.drawn(kit.resnet(2, 2)))
    (tmp_path / "train_opt.txt").write_text("options")
    assert load_generator(tmp_path).path.name == "5_net_G.pth"
    saved(tmp_path / "latest_net_G.pth", kit.drawn(TINY))
    assert load_generator(tmp_path).path.name == "latest_net_G.pth"


def test_stargans_folder_is_read_too(tmp_path):
    saved(tmp_path / "200000-G.ckpt", kit.thin("stargan"))
    saved(tmp_path / "200000-D.ckpt", kit.drawn(kit.stargan_critic(width=1)))
    assert load_generator(tmp_path).kind == "stargan"


def test_two_directions_in_a_folder_are_both_named(tmp_path):
    for name in ("G_A", "G_B", "D_A", "D_B"):
        saved(tmp_path / f"latest_net_{name}.pth", kit.drawn(TINY))
    message = refusal(tmp_path)
    assert "2 generators (latest_net_G_A.pth, latest_net_G_B.pth); name one" in message
    assert load_generator(tmp_path / "latest_net_G_B.pth").kind == "resnet"


def test_a_folder_without_a_generator_says_what_it_holds(tmp_path):
    assert "no model file" in refusal(tmp_path)
    saved(tmp_path / "latest_net_D.pth", kit.drawn(kit.patch(width=2)))
    assert "only latest_net_D.pth" in refusal(tmp_path)


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", [name for name in kit.CASES if name not in kit.GENERATORS])
def test_a_discriminator_is_refused_by_what_it_is(tmp_path, name):
    message = refusal(saved(tmp_path / "latest_net_D.pth", kit.thin(name, 2)))
    assert "is no generator but a discriminator" in message
    assert kit.CASES[name].words.split(",")[0] in message
    assert "latest_net_D.pth" in message


def test_several_networks_in_one_file_are_named(tmp_path):
    two = {"G_A": kit.drawn(TINY), "G_B": kit.drawn(TINY)}
    assert "found: G_A, G_B" in refusal(saved(tmp_path / "both.pth", two))
    flat = {f"{name}.{key}": value for name, tensors in two.items() for key, value in tensors.items()}
    weights.write(tmp_path / "ema.safetensors", flat)
    assert "several networks (G_A, G_B); save the generator" in refusal(tmp_path / "ema.safetensors")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_cut_short_is_damaged(tmp_path, suffix, share):
    path = tmp_path / f"a{suffix}"
    if suffix == ".pth":
        saved(path, kit.drawn(TINY))
    else:
        weights.write(path, kit.drawn(TINY))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    message = refusal(path)
    assert str(path) in message
    assert "damaged" in message or "no model file" in message


def test_nan_is_met_before_a_picture_is_black(tmp_path):
    tensors = kit.drawn(TINY)
    tensors["model.4.weight"][0, 0, 0, 0] = float("nan")
    assert "'model.4.weight' holds NaN" in refusal(saved(tmp_path / "a.pth", tensors))


class Harm:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_code_in_a_pickle_is_not_run(tmp_path):
    mark = tmp_path / "mark"
    message = refusal(saved(tmp_path / "a.pth", {**kit.drawn(TINY), "options": Harm(mark)}))
    assert "holds more than tensors" in message
    assert not mark.exists()


def test_wrong_tensors_and_wrong_files_are_one_line(tmp_path):
    assert "no image translation model" in refusal(saved(tmp_path / "a.pth", {"weight": torch.zeros(3)}))
    short = {key: value for key, value in kit.drawn(TINY).items() if key != "model.4.bias"}
    assert "1 missing (model.4.bias)" in refusal(saved(tmp_path / "b.pth", short))
    page = tmp_path / "c.pth"
    page.write_bytes(b"<!DOCTYPE html><html>")
    assert "a web page" in refusal(page)
    assert "does not exist" in refusal(tmp_path / "d.pth")


def test_an_alias_that_is_nearly_spelt_is_suggested():
    assert "did you mean 'noto-to-blob'" in refusal("noto-to-blub")
    assert "did you mean 'blob-to-noto'" in refusal("blob-to-nato")
    assert DEFAULT in MODELS


def test_describe_leaves_to_others_what_is_theirs(tmp_path):
    assert describe(saved(tmp_path / "a.pth", {"word_emb.weight": torch.zeros(3)})) is None
    said = describe(saved(tmp_path / "b.pth", kit.thin("pix2pix D", 2)))
    assert said is not None
    assert "makes none" in said["use"]
    weights_of = [value for key, value in kit.thin("pix2pix D", 2).items() if key.endswith(("weight", "bias"))]
    assert said["parameters"] == sum(value.numel() for value in weights_of)


@pytest.mark.slow
def test_the_published_files_load_at_full_size(tmp_path):
    for name in kit.GENERATORS:
        case = kit.CASES[name]
        path = saved(tmp_path / "latest_net_G.pth", kit.drawn(case.shapes(**case.options)))
        assert sum(p.numel() for p in load_generator(path).network.parameters()) == case.parameters
