"""Model files: genkit's own and AP-BWE's are read, and what is wrong with one is said in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genkit import weights
from genkit.errors import ModelError
from pipelines.audio_super_resolution.loading import Network, header, load
from pipelines.audio_super_resolution.networks.spectral import Config as SpectralConfig
from pipelines.audio_super_resolution.networks.spectral import Spectral
from pipelines.audio_super_resolution.networks.unet import Config as UNetConfig
from pipelines.audio_super_resolution.networks.unet import UNet

SPECTRA = SpectralConfig(channels=6, layers=2, n_fft=32, hop=5, window=20)
AP_BWE = {  # the part of the published config.json that says what a generator is, at a tiny size
    "batch_size": 16,
    "ConvNeXt_channels": 6,
    "ConvNeXt_layers": 2,
    "segment_size": 8000,
    "n_fft": 32,
    "hop_size": 5,
    "win_size": 20,
    "hr_sampling_rate": 48000,
    "lr_sampling_rate": 24000,
    "dist_config": {"dist_backend": "nccl"},
}


def networks() -> list[Network]:
    torch.manual_seed(0)
    return [UNet(UNetConfig(blocks=2, width=2)).eval(), Spectral(SPECTRA).eval()]


def own(path: Path, network: Network, /, **changed: str) -> Path:
    about = header(network, rate=16000, from_rates=[8000, 4000], preset="bright")
    kept = {key: value for key, value in {**about, **changed}.items() if value != "DROP"}
    weights.write(path, {key: value.half() for key, value in network.state_dict().items()}, kept)
    return path


def theirs(folder: Path, config: dict[str, Any] | None, name: str = "g_00100000", **changed: Tensor) -> Path:
    """A checkpoint as AP-BWE's training saves it."""
    folder.mkdir(exist_ok=True)
    torch.save({"generator": {**networks()[1].state_dict(), **changed}}, folder / name)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder / name


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_written_is_read(tmp_path: Path, which: int) -> None:
    network = networks()[which]
    own(tmp_path / "m.safetensors", network)
    for path in (tmp_path / "m.safetensors", tmp_path):
        model = load(path)
        assert (model.architecture, model.origin, model.preset) == (("unet", "spectral")[which], "genkit", "bright")
        assert (model.rate, model.from_rates) == (16000, (4000, 8000))
        assert model.network.config == network.config
        assert not model.network.training
        x = torch.randn(1, 130)
        assert torch.allclose(model.network.restore(x), network.half().float().restore(x), atol=1e-6)


def test_a_generator_of_ap_bwe_loads_unchanged(tmp_path: Path) -> None:
    path = theirs(tmp_path / "24kto48k", AP_BWE)
    (path.with_name("do_00100000")).write_bytes(b"the critics are not looked at")
    for place in (path, path.parent):
        model = load(place)
        assert (model.architecture, model.origin, model.preset) == ("spectral", "AP-BWE", "bright")
        assert (model.rate, model.from_rates) == (48000, (24000,))
        assert model.network.config == SPECTRA
        x = torch.randn(2, 99)
        assert torch.equal(model.network.restore(x), networks()[1].restore(x))


def test_of_several_checkpoints_of_ap_bwe_the_last_is_taken(tmp_path: Path) -> None:
    theirs(tmp_path, AP_BWE, "g_00005000")
    theirs(tmp_path, AP_BWE, "g_00010000", **{"norm_post_mag.bias": torch.ones(6)})
    assert load(tmp_path).network.state_dict()["norm_post_mag.bias"].all()


def published(layers: int = 1) -> dict[str, Tensor]:
    return Spectral(SpectralConfig(channels=4, layers=layers)).state_dict()


@pytest.mark.parametrize("place", ["g_8kto16k", "8kto16k/g_8kto16k", "AP-BWE_8kto16k/g_00500000"])
def test_without_its_config_the_name_says_the_rates(tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    torch.save({"generator": published(3)}, tmp_path / place)
    model = load(tmp_path / place)
    assert (model.rate, model.from_rates) == (16000, (8000,))
    assert model.network.config == SpectralConfig(channels=4, layers=3, n_fft=1024, hop=80, window=320)


def test_without_config_or_name_the_remedy_is_named(tmp_path: Path) -> None:
    for name, state in (("g_00500000", published()), ("g_8kto16k", networks()[1].state_dict())):
        folder = tmp_path / "models"
        folder.mkdir(exist_ok=True)
        torch.save({"generator": state}, folder / name)
        with pytest.raises(ModelError, match=r"put its config\.json beside it"):
            load(folder / name)


WRONG_CONFIGS: list[tuple[Any, str]] = [
    ({**AP_BWE, "ConvNeXt_layers": 8}, "and the config.json beside it differ: ConvNeXt_layers is 2, there 8"),
    ({**AP_BWE, "n_fft": 1024}, "n_fft is 32, there 1024"),
    ({**AP_BWE, "hop_size": 0}, "hop 0 is not from 1"),
    ({**AP_BWE, "hop_size": 19}, "hop 19 do not go together"),
    ({**AP_BWE, "win_size": "20"}, "window '20' is no int"),
    ({**AP_BWE, "lr_sampling_rate": 48000}, "not below the rate"),
    ({**AP_BWE, "hr_sampling_rate": 10**9}, "no number of Hz"),
    ({key: value for key, value in AP_BWE.items() if key != "hop_size"}, "'hop_size' is missing"),
    ([], "damaged"),
    (None, "put its config.json"),
    ("x" * 200_000, "is longer than 100,000 bytes"),
]


@pytest.mark.parametrize(("config", "message"), WRONG_CONFIGS)
def test_a_wrong_config_of_ap_bwe_is_one_line(tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(theirs(tmp_path / "model", config))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


WRONG_HEADERS: list[tuple[dict[str, str], str]] = [
    ({"architecture": "DROP"}, "no audio super-resolution model"),
    ({"architecture": "genkit.style-transfer.fast"}, "no audio super-resolution model"),
    ({"architecture": "genkit.audio-super-resolution.mamba"}, "knows no network 'mamba'"),
    ({"architecture": "genkit.audio-super-resolution.spectral"}, "damaged"),
    ({"network": "DROP"}, "'network' is missing"),
    ({"network": "{"}, "damaged"),
    ({"network": "[]"}, "damaged"),
    ({"network": "null"}, "damaged"),
    ({"network": "[" * 100_000}, "damaged"),
    ({"network": "{}"}, "does not fit UNet"),
    ({"network": '{"blocks": 2, "width": 3}'}, "does not fit UNet"),
    ({"network": '{"blocks": 200}'}, "blocks 200 is not from 2 to 8"),
    ({"network": '{"width": 1e99}'}, "is no int"),
    ({"rate": "DROP"}, "'rate' is missing"),
    ({"rate": "x"}, "damaged"),
    ({"rate": "true"}, "no number of Hz"),
    ({"rate": "4000"}, "not below the rate 4000"),
    ({"from_rates": "[]"}, "no list of rates"),
    ({"from_rates": "8000"}, "no list of rates"),
    ({"from_rates": "[8000.5]"}, "no number of Hz"),
    ({"preset": "loud"}, "'loud' is none of faithful, bright"),
]


@pytest.mark.parametrize(("changed", "message"), WRONG_HEADERS)
def test_a_wrong_header_is_one_line(tmp_path: Path, changed: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(own(tmp_path / "m.safetensors", networks()[0], **changed))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_model_of_another_kind_is_named(tmp_path: Path) -> None:
    weights.write(tmp_path / "m.safetensors", {"model.10.conv_block.1.weight": torch.zeros(3)})
    with pytest.raises(ModelError, match="it looks like a CycleGAN ResNet generator"):
        load(tmp_path)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = theirs(tmp_path / "a", AP_BWE, **{"norm_post_mag.bias": torch.ones(5)})
    with pytest.raises(ModelError, match=r"1 of another shape \(norm_post_mag\.bias \[5\] for \[6\]\)"):
        load(path)
    path = theirs(tmp_path / "b", AP_BWE, **{"conv_pre_mag.weight": torch.ones(5)})
    with pytest.raises(ModelError, match="damaged"):
        load(path)
    path = theirs(tmp_path / "c", AP_BWE, **{"convnext_mag.1.gamma": torch.full((6,), torch.nan)})
    with pytest.raises(ModelError, match="holds NaN"):
        load(path)


def test_folders_with_several_models_or_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no model"):
        load(tmp_path)
    own(tmp_path / "a.safetensors", networks()[0])
    own(tmp_path / "b.safetensors", networks()[0])
    with pytest.raises(ModelError, match=r"several models \(a\.safetensors, b\.safetensors\); name one"):
        load(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        load(tmp_path / "none.safetensors")


def test_a_header_is_checked_when_it_is_written() -> None:
    network = networks()[0]
    for wrong in ({"rate": 8000}, {"from_rates": []}, {"preset": "loud"}):
        with pytest.raises(ValueError, match=next(iter(wrong)) + "|rate"):
            header(network, **{"rate": 16000, "from_rates": [8000], "preset": "bright", **wrong})  # type: ignore[arg-type]
