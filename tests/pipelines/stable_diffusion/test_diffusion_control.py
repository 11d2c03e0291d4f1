"""ControlNets: as diffusers runs them, one or several, in every mode, and none of another family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import additions_kit as kit
import pytest
import torch

from genkit.errors import GenkitError, InputError, ModelError
from genkit.media.image import Image
from pipelines.stable_diffusion.additions.applying import Additions
from pipelines.stable_diffusion.pipeline import Params


@pytest.fixture(scope="module")
def additions(sd: Path) -> Additions:
    return Additions(kit.load(sd))


@pytest.fixture(scope="module")
def plain(sd: Path) -> torch.Tensor:
    return kit.made(Additions(kit.load(sd)))


@pytest.fixture(scope="module")
def home(additions: Additions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ControlNets `one` and `other`, and pictures for them."""
    folder = tmp_path_factory.mktemp("control")
    for seed, name in enumerate(("one", "other")):
        kit.controlnet(additions.model, seed).save_pretrained(folder / name)
        generator = torch.Generator().manual_seed(seed)
        Image.from_tensor(torch.rand(3, 64, 64, generator=generator)).save(folder / f"{name}.png")
    Image.from_tensor(torch.rand(3, 30, 50, generator=generator)).save(folder / "small.png")
    return folder


def control(home: Path, name: str = "one", **more: Any) -> dict[str, Any]:
    return {"model": str(home / name), "image": str(home / f"{name}.png"), **more}


def by_diffusers(sd: Path, home: Path, names: list[str], mode: str, **given: Any) -> torch.Tensor:
    import diffusers

    networks = [diffusers.ControlNetModel.from_pretrained(home / name, use_safetensors=True) for name in names]
    kind = {"text": "", "image": "Img2Img", "inpaint": "Inpaint"}[mode]
    pipe = getattr(diffusers, f"StableDiffusionControlNet{kind}Pipeline").from_pretrained(
        sd, controlnet=networks[0] if len(networks) == 1 else networks, safety_checker=None, use_safetensors=True
    )
    pipe.set_progress_bar_config(disable=True)
    pictures = [Image.open(home / f"{name}.png").pil for name in names]
    shown = pictures if len(pictures) > 1 else pictures[0]
    given["image" if mode == "text" else "control_image"] = shown
    with torch.no_grad():
        return pipe(
            "a red apple",
            negative_prompt="blob",
            num_inference_steps=2,
            guidance_scale=5.0,
            generator=[torch.Generator().manual_seed(1)],
            output_type="pt",
            **given,
        ).images


@pytest.mark.parametrize("mode", ["text", "image", "inpaint"])
def test_as_diffusers_does(mode: str, additions: Additions, sd: Path, home: Path) -> None:
    begun: dict[str, Any] = {}
    if mode != "text":
        begun = {"image": torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(5)), "strength": 1.0}
    if mode == "inpaint":
        begun["mask_image"] = torch.ones(1, 1, 64, 64)
        begun["mask_image"][..., :32] = 0
    ours = kit.made(additions, mode=mode, control=control(home, weight=0.7, end=0.5), **begun)
    scale = {"controlnet_conditioning_scale": 0.7, "control_guidance_end": 0.5}
    theirs = by_diffusers(sd, home, ["one"], mode, **scale, **begun)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_several_at_once(additions: Additions, sd: Path, home: Path) -> None:
    ours = kit.made(additions, control=[control(home, weight=0.5), control(home, "other", start=0.5)])
    weights = {"controlnet_conditioning_scale": [0.5, 1.0], "control_guidance_start": [0.0, 0.5]}
    theirs = by_diffusers(sd, home, ["one", "other"], "text", control_guidance_end=[1.0, 1.0], **weights)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_it_changes_the_picture_and_leaves_the_model(additions: Additions, plain: torch.Tensor, home: Path) -> None:
    assert not torch.allclose(kit.made(additions, control=control(home)), plain, atol=0.05)
    assert torch.allclose(kit.made(additions, control=control(home, weight=0)), plain, atol=1e-6)
    assert torch.equal(kit.made(additions), plain)


def test_its_picture_is_brought_to_the_canvas(additions: Additions, home: Path) -> None:
    spec = control(home) | {"image": str(home / "small.png")}
    with additions.applied(Params(prompt="a", control=[spec])) as use:
        given = use.arguments("text", 72, 64, 1, True)
    assert given["image"].shape == (1, 3, 64, 72)
    assert given["image"].min() >= 0
    assert given["image"].max() <= 1


def test_it_is_loaded_once(additions: Additions, home: Path) -> None:
    networks = []
    for _ in range(2):
        with additions.applied(Params(prompt="a", control=[control(home)])):
            networks.append(additions.controls.wanted(Params(prompt="a", control=[control(home)]).control)[0])
    assert networks[0] is networks[1]


def test_a_single_file(additions: Additions, home: Path, tmp_path: Path) -> None:
    path = tmp_path / "edges.safetensors"
    path.write_bytes((home / "one" / "diffusion_pytorch_model.safetensors").read_bytes())
    spec = control(home) | {"model": str(path)}
    assert torch.equal(kit.made(additions, control=spec), kit.made(additions, control=control(home)))


def test_beside_a_denoiser_in_bfloat16(sd: Path, home: Path) -> None:
    relaxed, exact = (Additions(kit.load(sd, dtype)) for dtype in ("float32/bfloat16", "float32"))
    found, plain = kit.made(relaxed, control=control(home)), kit.made(exact)
    expected = kit.made(exact, control=control(home))
    assert (found - expected).abs().mean() < 0.1 * (expected - plain).abs().mean()


def test_for_sdxl(sdxl: Path, home: Path, tmp_path: Path) -> None:
    additions = Additions(kit.load(sdxl))
    plain = kit.made(additions)
    kit.controlnet(additions.model).save_pretrained(tmp_path / "xl")
    spec = control(home) | {"model": str(tmp_path / "xl")}
    assert not torch.allclose(kit.made(additions, control=spec), plain, atol=0.02)
    assert torch.equal(kit.made(additions), plain)


def refusal(additions: Additions, *specs: dict[str, Any], error: type[GenkitError] = ModelError) -> str:
    with pytest.raises(error) as caught, additions.applied(Params(prompt="a", control=list(specs))):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_one_for_another_family(additions: Additions, sdxl: Path, home: Path, tmp_path: Path) -> None:
    kit.controlnet(kit.load(sdxl)).save_pretrained(tmp_path / "xl")
    message = refusal(additions, control(home) | {"model": str(tmp_path / "xl")})
    assert "is for a model whose text is 64 wide, and this model is Stable Diffusion 1" in message
    message = refusal(Additions(kit.load(sdxl)), control(home))
    assert "this model is Stable Diffusion XL" in message


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_transformers_are_refused(family: str, home: Path, request: pytest.FixtureRequest) -> None:
    additions = Additions(kit.load(request.getfixturevalue(family)))
    assert "control works with Stable Diffusion 1, 2 and XL" in refusal(additions, control(home), error=InputError)


def test_what_is_none(additions: Additions, sd: Path, home: Path, tmp_path: Path) -> None:
    def told(model: Path) -> str:
        return refusal(additions, control(home) | {"model": str(model)})

    assert "does not exist" in told(tmp_path / "none.safetensors")
    assert "is a U-Net, not a ControlNet" in told(sd / "unet")
    assert "is no ControlNet: it looks like a diffusers U-Net" in told(
        sd / "unet" / "diffusion_pytorch_model.safetensors"
    )
    (tmp_path / "empty").mkdir()
    assert "holds no ControlNet" in told(tmp_path / "empty")
    file = (home / "one" / "diffusion_pytorch_model.safetensors").read_bytes()
    (tmp_path / "empty" / "diffusion_pytorch_model.safetensors").write_bytes(file)
    assert "has no readable config.json" in told(tmp_path / "empty")
    assert "start must be below end" in refusal(additions, control(home, start=0.5, end=0.5), error=InputError)
