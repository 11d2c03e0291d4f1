"""LoRA: W + weight * B A whoever wrote the file, several at once, and the model as it was when none is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import additions_kit as kit
import pytest
import torch
from safetensors.torch import load_file

from genkit.errors import ModelError
from pipelines.stable_diffusion.additions import lora
from pipelines.stable_diffusion.additions.applying import Additions
from pipelines.stable_diffusion.pipeline import Params

NEAR = 5e-4  # upstream's tolerance


@pytest.fixture(scope="module")
def additions(sd: Path) -> Additions:
    return Additions(kit.load(sd))


@pytest.fixture(scope="module")
def plain(additions: Additions) -> torch.Tensor:
    return kit.made(Additions(kit.load(additions.model.path)))


@pytest.fixture(scope="module")
def first(additions: Additions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.diffusers_file(tmp_path_factory.mktemp("lora") / "first.safetensors", kit.pairs(additions.model, "sd"))


def merged(folder: Path, *changes: tuple[kit.Pairs, float]) -> torch.Tensor:
    """The picture of a model whose weights were changed by hand."""
    model = kit.load(folder)
    for one, scale in changes:
        kit.merge(model, one, scale)
    return kit.made(Additions(model))


WRITERS: dict[str, tuple[Callable[[Path, kit.Pairs], Path], float]] = {
    "diffusers": (lambda path, pairs: kit.diffusers_file(path / "a.safetensors", pairs), 1),
    "diffusers, stating its scale": (lambda path, pairs: kit.diffusers_file(path / "a.safetensors", pairs, 6), 2),
    "diffusers, before peft": (lambda path, pairs: kit.old_diffusers_file(path / "a.safetensors", pairs), 1),
    "kohya": (lambda path, pairs: kit.kohya_file(path / "a.safetensors", pairs, 1.5), 0.5),
    "kohya, without alpha": (lambda path, pairs: kit.kohya_file(path / "a.safetensors", pairs), 1),
    "a folder": (lambda path, pairs: kit.diffusers_file(path / "pytorch_lora_weights.safetensors", pairs).parent, 1),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_lora_adds_its_product_to_the_weights(
    writer: str, additions: Additions, plain: torch.Tensor, sd: Path, tmp_path: Path
) -> None:
    write, scale = WRITERS[writer]
    changes = kit.pairs(additions.model, "sd", seed=1)
    found = kit.made(additions, lora=f"{write(tmp_path, changes)}:0.7")
    assert torch.allclose(found, merged(sd, (changes, 0.7 * scale)), atol=NEAR)
    assert not torch.allclose(found, plain, atol=0.05)


@pytest.mark.parametrize("network", ["unet", "text_encoder"])
def test_an_adapter_of_peft_goes_to_the_network_that_has_its_layers(
    network: str, additions: Additions, sd: Path, tmp_path: Path
) -> None:
    layers = kit.pairs(additions.model, "sd", seed=2)[network]
    quiet = next(iter(layers))
    folder = kit.peft_folder(tmp_path / "peft", layers, lora_alpha=2 * kit.RANK, alpha_pattern={quiet: 0})
    changes = {network: {layer: pair for layer, pair in layers.items() if layer != quiet}}
    assert torch.allclose(kit.made(additions, lora=str(folder)), merged(sd, (changes, 2.0)), atol=NEAR)


def test_rank_stabilised_scale(additions: Additions, sd: Path, tmp_path: Path) -> None:
    layers = kit.pairs(additions.model, "sd", seed=2)["unet"]
    folder = kit.peft_folder(tmp_path / "peft", layers, lora_alpha=1, use_rslora=True)
    expected = merged(sd, ({"unet": layers}, kit.RANK**-0.5))
    assert torch.allclose(kit.made(additions, lora=str(folder)), expected, atol=NEAR)


@pytest.mark.parametrize("trainer", ["diffusers' names", "the original names"])
def test_kohya_for_sdxl(trainer: str, sdxl: Path, tmp_path: Path) -> None:
    blocks = {
        "down_blocks.1.attentions.0": "input_blocks.3.1",
        "mid_block.attentions.0": "middle_block.1",
        "up_blocks.0.attentions.0": "output_blocks.0.1",
    }
    layers = kit.LAYERS["sdxl"]["unet"]
    names = {layer: layer.replace(block, blocks[block]) for layer in layers for block in blocks if block in layer}
    model = kit.load(sdxl)
    changes = kit.pairs(model, "sdxl")
    original = names if trainer == "the original names" else None
    path = kit.kohya_file(tmp_path / "a.safetensors", changes, 1.0, original)
    found = kit.made(Additions(model), lora=str(path))
    assert torch.allclose(found, merged(sdxl, (changes, 1 / kit.RANK)), atol=NEAR)


@pytest.mark.parametrize(
    ("family", "layer"),
    [("sd3", "transformer_blocks.0.attn.to_q"), ("flux", "single_transformer_blocks.0.attn.to_k")],
)
def test_for_transformers(family: str, layer: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    additions = Additions(kit.load(request.getfixturevalue(family)))
    network = additions.model.denoiser
    weight = network.get_submodule(layer).weight
    first, second = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
    path = kit.diffusers_file(tmp_path / "a.safetensors", {"transformer": {layer: (first, second)}})
    value = torch.randn(4, weight.shape[1])
    plain = network.get_submodule(layer)(value)
    with additions.applied(Params(prompt="a", lora=[f"{path}:0.5"])):
        found = network.get_submodule(layer)(value)
    assert torch.allclose(found, plain + 0.5 * value @ first.T @ second.T, atol=1e-4)
    assert torch.equal(network.get_submodule(layer)(value), plain)


def test_as_diffusers_loads_it(additions: Additions, first: Path, sd: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(sd, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(str(first.parent), weight_name=first.name, adapter_name="a")
    pipe.set_adapters("a", 0.7)
    generator = [torch.Generator().manual_seed(1)]
    with torch.no_grad():
        theirs = pipe(
            "a red apple",
            negative_prompt="blob",
            num_inference_steps=2,
            guidance_scale=5.0,
            generator=generator,
            output_type="pt",
        ).images
    assert torch.allclose(kit.made(additions, lora=f"{first}:0.7"), theirs, atol=1e-5)


def test_without_one_it_is_the_original_to_the_bit(additions: Additions, plain: torch.Tensor, first: Path) -> None:
    assert not torch.equal(kit.made(additions, lora=str(first)), plain)
    assert torch.equal(kit.made(additions), plain)
    assert torch.equal(kit.made(additions, lora=f"{first}:0"), plain)


def test_it_is_the_original_after_an_error(additions: Additions, plain: torch.Tensor, first: Path) -> None:
    with pytest.raises(KeyboardInterrupt), additions.applied(Params(prompt="a", lora=[str(first)])):
        raise KeyboardInterrupt
    assert torch.equal(kit.picture(additions.model, _nothing(additions)), plain)


def _nothing(additions: Additions) -> Any:
    """The model as it stands, nothing switched."""
    from pipelines.stable_diffusion.additions.applying import Use

    return Use(additions, Params(prompt="a"), {}, None, ())


def test_several_add_up(additions: Additions, first: Path, sd: Path, tmp_path: Path) -> None:
    one, other = kit.pairs(additions.model, "sd"), kit.pairs(additions.model, "sd", seed=5, rank=2)
    second = kit.kohya_file(tmp_path / "second.safetensors", {"unet": other["unet"]})
    found = kit.made(additions, lora=[f"{first}:0.5", f"{second}:-0.8"])
    assert torch.allclose(found, merged(sd, (one, 0.5), ({"unet": other["unet"]}, -0.8)), atol=NEAR)
    assert torch.allclose(kit.made(additions, lora=[f"{second}:-0.8", f"{first}:0.5"]), found, atol=1e-5)
    assert torch.equal(
        kit.made(additions, lora=f"{first}:0.5"), kit.made(additions, lora=[f"{first}:0.2", f"{first}:0.3"])
    )


def test_it_stays_loaded_until_its_file_changes(additions: Additions, sd: Path, tmp_path: Path) -> None:
    changes = kit.pairs(additions.model, "sd", seed=6)
    path = kit.diffusers_file(tmp_path / "a.safetensors", {"unet": changes["unet"]})
    once = kit.made(additions, lora=str(path))
    count = additions.loras.count
    kit.made(additions)
    assert torch.equal(kit.made(additions, lora=str(path)), once)
    assert additions.loras.count == count
    kit.diffusers_file(path, changes)
    assert torch.allclose(kit.made(additions, lora=str(path)), merged(sd, (changes, 1.0)), atol=NEAR)
    assert additions.loras.count == count + 1


def test_the_least_recent_are_let_go(sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "KEPT", 1)
    additions = Additions(kit.load(sd))
    plain = kit.made(additions)
    changes = [kit.pairs(additions.model, "sd", seed=i) for i in range(3)]
    files = [kit.diffusers_file(tmp_path / f"{i}.safetensors", changes[i]) for i in range(3)]
    shown = [kit.made(additions, lora=str(file)) for file in files]
    assert [Path(key.split(" ")[0]).name for key in additions.loras.loaded] == ["1.safetensors", "2.safetensors"]
    assert torch.equal(kit.made(additions, lora=str(files[0])), shown[0])
    assert torch.equal(kit.made(additions), plain)


def test_beside_a_denoiser_in_bfloat16(sd: Path, first: Path) -> None:
    relaxed = Additions(kit.load(sd, "float32/bfloat16"))
    plain = kit.made(relaxed)
    found = kit.made(relaxed, lora=str(first))
    assert next(relaxed.model.denoiser.parameters()).dtype == torch.bfloat16
    exact = merged(sd, (kit.pairs(relaxed.model, "sd"), 1.0))
    assert (found - exact).abs().mean() < 0.1 * (exact - plain).abs().mean()
    assert torch.equal(kit.made(relaxed), plain)


def test_what_changes_a_prompts_encoding_is_in_the_key(additions: Additions, first: Path, tmp_path: Path) -> None:
    unet_only = kit.diffusers_file(tmp_path / "a.safetensors", {"unet": kit.pairs(additions.model, "sd")["unet"]})

    def key(*loras: str) -> object:
        with additions.applied(Params(prompt="a", lora=list(loras))) as use:
            return use.key

    assert key() == key(str(unet_only)) != key(str(first)) != key(f"{first}:0.5")


def test_a_name_that_is_not_loaded(additions: Additions) -> None:
    with pytest.raises(ModelError, match="no LoRA is loaded as 'detail'"):
        additions.loras.set({"detail": 1.0})


def refusal(additions: Additions, ref: object) -> str:
    with pytest.raises(ModelError) as caught, additions.applied(Params(prompt="a", lora=[str(ref)])):
        pass
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_one_for_another_architecture(sdxl: Path, additions: Additions, tmp_path: Path) -> None:
    large = kit.load(sdxl)
    for_xl = kit.kohya_file(tmp_path / "xl.safetensors", kit.pairs(large, "sdxl"))
    assert "xl.safetensors is not for this model (Stable Diffusion 1): it is for Stable Diffusion XL" in refusal(
        additions, for_xl
    )
    for_sd = kit.diffusers_file(tmp_path / "sd.safetensors", kit.pairs(additions.model, "sd"))
    assert "sd.safetensors is not for this model (Stable Diffusion XL)" in refusal(Additions(large), for_sd)
    layer = "transformer.single_transformer_blocks.0.attn.to_q"
    for_flux = kit.saved(
        tmp_path / "flux.safetensors",
        {f"{layer}.lora_A.weight": torch.zeros(2, 32), f"{layer}.lora_B.weight": torch.zeros(32, 2)},
    )
    assert "it is for Flux" in refusal(additions, for_flux)


@pytest.mark.parametrize(("width", "family"), [(768, "1"), (1024, "2"), (2048, "XL")])
def test_the_width_of_the_text_tells_the_family(width: int, family: str, additions: Additions, tmp_path: Path) -> None:
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    path = kit.saved(
        tmp_path / "a.safetensors",
        {f"{layer}.lora_down.weight": torch.zeros(2, width), f"{layer}.lora_up.weight": torch.zeros(320, 2)},
    )
    message = refusal(additions, path)
    told = f"it is for Stable Diffusion {family}" if family != "1" else "goes from 768 to 320 in it and from 32 to 16"
    assert told in message


def test_what_is_no_lora(additions: Additions, first: Path, sd: Path, tmp_path: Path) -> None:
    assert "does not exist" in refusal(additions, tmp_path / "none.safetensors")
    unet = sd / "unet" / "diffusion_pytorch_model.safetensors"
    assert "is no LoRA: it looks like a diffusers U-Net" in refusal(additions, unet)
    tensors = load_file(first)
    name = next(iter(tensors))
    torch.save(tensors, tmp_path / "a.pt")
    assert "is no .safetensors file" in refusal(additions, tmp_path / "a.pt")
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.pt").read_bytes())
    assert "damaged" in refusal(additions, tmp_path / "b.safetensors")
    kit.saved(tmp_path / "nan.safetensors", {**tensors, name: tensors[name] * float("nan")})
    assert "holds NaN" in refusal(additions, tmp_path / "nan.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(first.read_bytes()[:-8])
    assert "damaged" in refusal(additions, tmp_path / "cut.safetensors")
    kit.saved(tmp_path / "half.safetensors", {key: value for key, value in tensors.items() if key != name})
    assert "one matrix is missing" in refusal(additions, tmp_path / "half.safetensors")
    kit.saved(tmp_path / "loha.safetensors", {"lora_unet_mid_block.hada_w1_a": torch.zeros(2, 2)})
    assert "LoHa" in refusal(additions, tmp_path / "loha.safetensors")
    kit.saved(tmp_path / "strange.safetensors", {"lora_unet_strange.lora_down.weight": torch.zeros(2, 2)})
    assert "has" in refusal(additions, tmp_path / "strange.safetensors")
    assert "org/name" in refusal(additions, "detail")


def test_a_folder_of_several(additions: Additions, first: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.safetensors").write_bytes(first.read_bytes())
    assert "holds 2 files (a.safetensors, b.safetensors); name one" in refusal(additions, tmp_path)


def test_a_damaged_configuration(additions: Additions, tmp_path: Path) -> None:
    folder = kit.peft_folder(tmp_path / "peft", kit.pairs(additions.model, "sd")["unet"], lora_alpha="much")
    assert "states no scale" in refusal(additions, folder)
    (folder / "adapter_config.json").write_text("{")
    assert "is damaged" in refusal(additions, folder)
