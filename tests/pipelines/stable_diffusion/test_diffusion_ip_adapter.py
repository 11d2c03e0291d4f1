"""IP-Adapters: as diffusers runs them, with the image encoder that fits, and gone without a trace."""

from __future__ import annotations

from pathlib import Path

import additions_kit as kit
import diffusion_kit
import pytest
import torch
from safetensors.torch import load_file

from genkit.errors import GenkitError, InputError, ModelError
from genkit.media.image import Image
from pipelines.stable_diffusion.additions.applying import Additions
from pipelines.stable_diffusion.pipeline import Params


@pytest.fixture(scope="module")
def additions(seeing: Path) -> Additions:
    return Additions(kit.load(seeing))


@pytest.fixture(scope="module")
def plain(seeing: Path) -> torch.Tensor:
    return kit.made(Additions(kit.load(seeing)))


@pytest.fixture(scope="module")
def home(additions: Additions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    kit.ip_adapter(folder / "plain.safetensors", additions.model)
    kit.ip_adapter(folder / "plus.safetensors", additions.model, plus=True)
    Image.from_tensor(torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(2))).save(folder / "look.png")
    return folder


def prompt(home: Path, name: str = "plain", weight: float = 1.0) -> dict[str, object]:
    return {"model": str(home / f"{name}.safetensors"), "image": str(home / "look.png"), "weight": weight}


@pytest.mark.parametrize("kind", ["plain", "plus"])
def test_as_diffusers_does(kind: str, additions: Additions, seeing: Path, home: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(seeing, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(str(home), subfolder="", weight_name=f"{kind}.safetensors")
    pipe.set_ip_adapter_scale(0.6)
    with torch.no_grad():
        theirs = pipe(
            "a red apple",
            negative_prompt="blob",
            ip_adapter_image=Image.open(home / "look.png").pil,
            num_inference_steps=2,
            guidance_scale=5.0,
            generator=[torch.Generator().manual_seed(1)],
            output_type="pt",
        ).images
    assert torch.allclose(kit.made(additions, image_prompt=prompt(home, kind, 0.6)), theirs, atol=1e-5)


def test_it_leaves_no_trace(additions: Additions, plain: torch.Tensor, home: Path) -> None:
    unet, eye = additions.model.pipe.unet, additions.model.pipe.image_encoder
    before = dict(unet.attn_processors)
    assert not torch.allclose(kit.made(additions, image_prompt=prompt(home)), plain, atol=0.02)
    assert unet.attn_processors == before
    assert unet.encoder_hid_proj is None
    assert additions.model.pipe.image_encoder is eye
    assert torch.equal(kit.made(additions), plain)
    assert torch.equal(kit.made(additions, image_prompt=prompt(home, weight=0)), plain)
    with pytest.raises(KeyboardInterrupt), additions.applied(Params(prompt="a", image_prompt=prompt(home))):
        raise KeyboardInterrupt
    assert torch.equal(kit.made(additions), plain)


def test_it_is_kept_for_the_next(additions: Additions, home: Path) -> None:
    first = kit.made(additions, image_prompt=prompt(home))
    kept = additions.image_prompts.kept
    other = kit.made(additions, image_prompt=prompt(home, weight=0.3))
    assert additions.image_prompts.kept is kept
    assert not torch.equal(first, other)
    kit.made(additions, image_prompt=prompt(home, "plus"))
    assert torch.equal(kit.made(additions, image_prompt=prompt(home)), first)


def test_pictures_of_a_batch_share_it(additions: Additions, home: Path) -> None:
    with torch.no_grad(), additions.applied(Params(prompt="a", image_prompt=prompt(home))) as use:
        alone = kit.picture(additions.model, use)
        pair = use.pipe("text")(
            ["a red apple"] * 2,
            negative_prompt=["blob"] * 2,
            num_inference_steps=2,
            guidance_scale=5.0,
            generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
            output_type="pt",
            **use.arguments("text", 64, 64, 2, True),
        ).images
    assert torch.allclose(pair[:1], alone, atol=1e-5)


def test_without_guidance(additions: Additions, plain: torch.Tensor, home: Path) -> None:
    with torch.no_grad(), additions.applied(Params(prompt="a", image_prompt=prompt(home))) as use:
        given = use.arguments("text", 64, 64, 3, False)["ip_adapter_image_embeds"]
        assert [part.shape for part in given] == [(3, 1, diffusion_kit.HIDDEN)]


def test_an_image_encoder_beside_the_file(sd: Path, additions: Additions, home: Path, tmp_path: Path) -> None:
    blind = Additions(kit.load(sd))
    path = tmp_path / "models" / "a.safetensors"
    path.parent.mkdir()
    path.write_bytes((home / "plain.safetensors").read_bytes())
    spec = {"model": str(path), "image": str(home / "look.png")}
    with pytest.raises(ModelError, match="needs an image encoder with projection_dim 32"):
        kit.made(blind, image_prompt=spec)
    plain = kit.made(blind)
    additions.model.pipe.image_encoder.save_pretrained(path.parent / "image_encoder")
    found = kit.made(blind, image_prompt=spec)
    assert not torch.allclose(found, plain, atol=0.02)
    assert blind.model.pipe.image_encoder is None
    assert torch.equal(kit.made(blind), plain)


def test_for_sdxl_and_bfloat16(sdxl: Path, additions: Additions, home: Path, tmp_path: Path) -> None:
    made = []
    additions.model.pipe.image_encoder.save_pretrained(tmp_path / "image_encoder")
    for dtype in ("float32", "float32/bfloat16"):
        large = Additions(kit.load(sdxl, dtype))
        kit.ip_adapter(tmp_path / "xl.safetensors", large.model)
        spec = {"model": str(tmp_path / "xl.safetensors"), "image": str(home / "look.png")}
        made += [kit.made(large, image_prompt=spec), kit.made(large)]
    exact, plain, relaxed, _ = made
    assert (relaxed - exact).abs().mean() < 0.2 * (exact - plain).abs().mean()


def refusal(additions: Additions, home: Path, ref: object, error: type[GenkitError] = ModelError) -> str:
    spec = {"model": str(ref), "image": str(home / "look.png")}
    with pytest.raises(error) as caught, additions.applied(Params(prompt="a", image_prompt=spec)):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit(additions: Additions, sd: Path, sdxl: Path, flux: Path, home: Path, tmp_path: Path) -> None:
    kit.ip_adapter(tmp_path / "xl.safetensors", kit.load(sdxl))
    message = refusal(additions, home, tmp_path / "xl.safetensors")
    assert "is for a model whose text is 64 wide, and this model is Stable Diffusion 1" in message
    tensors = load_file(home / "plain.safetensors")
    kit.saved(tmp_path / "face.safetensors", {**tensors, "ip_adapter.1.to_k_lora.down.weight": torch.zeros(2, 2)})
    assert "FaceID" in refusal(additions, home, tmp_path / "face.safetensors")
    kit.saved(tmp_path / "nan.safetensors", {name: t * float("nan") for name, t in tensors.items()})
    assert "NaN" in refusal(additions, home, tmp_path / "nan.safetensors")
    unet = sd / "unet" / "diffusion_pytorch_model.safetensors"
    assert "is no IP-Adapter: it looks like a diffusers U-Net" in refusal(additions, home, unet)
    assert "may hold many IP-Adapters: name one" in refusal(additions, home, "h94/IP-Adapter")
    torch.save(tensors, tmp_path / "a.bin")
    assert "is no .safetensors file" in refusal(additions, home, tmp_path / "a.bin")
    message = refusal(Additions(kit.load(flux)), home, home / "plain.safetensors", InputError)
    assert "image_prompt works with Stable Diffusion 1, 2 and XL" in message
