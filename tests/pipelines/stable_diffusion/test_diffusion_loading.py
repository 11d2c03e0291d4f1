"""From a reference to a model: the same numbers as diffusers alone, one dtype, shared weights, and every bad folder."""

from __future__ import annotations

import json
import shutil

import diffusers
import diffusion_kit as kit
import pytest
import torch
from safetensors.torch import load_file, save_file

from genkit import weights
from genkit.errors import DeviceError, GenkitError, ModelError
from genkit.runtime import Runtime
from pipelines.stable_diffusion import folders, memory
from pipelines.stable_diffusion.describing import describe
from pipelines.stable_diffusion.loading import cast, load_model
from pipelines.stable_diffusion.models import Defaults

CPU = Runtime(torch.device("cpu"))
HALF = Runtime(torch.device("cpu"), torch.bfloat16)
RELAXED = Runtime(torch.device("cpu"), relaxed=torch.bfloat16)
FAMILIES = ("sd", "sdxl", "sd3", "flux")


def paint(pipe, name="sd", **options):
    """Two pictures [2, 3, 64, 64] in 0..1."""
    short = {"max_sequence_length": 32} if name in ("sd3", "flux") else {}
    generator = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    options = {"height": 64, "width": 64, "num_inference_steps": 3, "output_type": "pt"} | short | options
    return pipe(["a red apple", "snow"], generator=generator, **options).images


def plain(folder, **options):
    """What diffusers makes of a folder by itself."""
    with folders.quiet():
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", FAMILIES)
def test_a_picture_is_the_one_that_diffusers_makes_bit_for_bit(name, request):
    folder = request.getfixturevalue(name)
    model = load_model(folder, CPU)
    assert torch.equal(paint(model.pipe, name), paint(plain(folder), name))
    assert model.family == {"sd": "sd1"}.get(name, name)
    assert model.kind == "text"
    assert model.multiple == (8 if name.startswith("sd") and name != "sd3" else 16)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_relaxed_denoiser_and_decoder_give_nearly_the_same_and_leave_all_else_in_float32(name, request):
    folder = request.getfixturevalue(name)
    exact, model = load_model(folder, CPU), load_model(folder, RELAXED)
    relaxed = [p for part in (model.denoiser, model.pipe.vae.decoder) for p in part.parameters()]
    assert {p.dtype for p in relaxed} == {torch.bfloat16}
    others = [p for part in (model.pipe.vae.encoder, model.pipe.text_encoder) for p in part.parameters()]
    assert {p.dtype for p in others} == {torch.float32}
    seen = []
    picture = paint(
        model.pipe, name, callback_on_step_end=lambda pipe, i, t, state: seen.append(state["latents"]) or {}
    )
    assert {latents.dtype for latents in seen} == {torch.float32}
    error = (picture - paint(exact.pipe, name)).square().mean()
    assert 0 < error < 1e-3  # 30 dB


def test_what_goes_into_a_relaxed_denoiser_is_not_changed():
    inputs = {"sample": torch.ones(2, 2), "time_ids": torch.ones(2, 6), "parts": [torch.ones(1, 1)], "t": torch.ones(2)}
    found = cast(inputs, torch.bfloat16)
    kinds = {name: value.dtype for name, value in found.items() if name != "parts"}
    assert kinds == {"sample": torch.bfloat16, "time_ids": torch.float32, "t": torch.float32}
    assert found["parts"][0].dtype == torch.bfloat16
    assert inputs["sample"].dtype == torch.float32


@pytest.mark.parametrize("runtime", [CPU, HALF], ids=["float32", "bfloat16"])
def test_files_of_16_bits_are_read_in_one_dtype_all_through(sd, tmp_path, runtime):
    plain(sd, dtype=torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    assert list((tmp_path / "half" / "unet").glob("*.fp16.safetensors"))
    pipe = load_model(tmp_path / "half", runtime).pipe
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        assert {p.dtype for p in part.parameters()} == {runtime.dtype}
    assert paint(pipe).isfinite().all()


def test_variants_share_every_weight_and_keep_their_dtype(seeing):
    model = load_model(seeing, HALF)
    for mode, name in (("image", "Img2Img"), ("inpaint", "Inpaint")):
        pipe = model.variant(mode)
        assert type(pipe).__name__ == f"StableDiffusion{name}Pipeline"
        assert model.variant(mode) is pipe
        for part in ("unet", "vae", "text_encoder", "tokenizer", "image_encoder"):
            assert getattr(pipe, part) is getattr(model.pipe, part)
        assert pipe.unet.dtype == torch.bfloat16
    assert model.variant("text") is model.pipe
    assert model.pipe.safety_checker is None


def test_a_model_for_inpainting_does_that_alone(inpainting):
    model = load_model(inpainting, CPU)
    assert model.kind == "inpainting"
    assert model.variant("inpaint") is model.pipe
    with pytest.raises(ModelError, match="is a model for inpainting: give image and mask_image"):
        model.variant("text")


def test_a_controlnet_goes_beside_the_same_parts(sd):
    model = load_model(sd, CPU)
    network = diffusers.ControlNetModel.from_unet(model.pipe.unet)
    pipe = model.variant("text", controlnet=network)
    assert type(pipe).__name__ == "StableDiffusionControlNetPipeline"
    assert pipe.controlnet is network
    assert pipe.unet is model.pipe.unet


def test_defaults_are_those_of_the_folder_and_its_family(sd, flux, flux_dev, tmp_path):
    assert load_model(sd, CPU).defaults == Defaults(64, 64, 30, 7.5)
    assert load_model(flux, CPU).defaults.guidance_scale == 0
    assert load_model(flux_dev, CPU).defaults.guidance_scale == 3.5
    kit.save_sd(tmp_path / "lcm", scheduler=diffusers.LCMScheduler(steps_offset=1), time_cond_proj_dim=16)
    assert load_model(tmp_path / "lcm", CPU).defaults.num_inference_steps == 6


def test_neither_warnings_nor_bars_nor_the_level_of_logs_are_left_behind(sd, capfd):
    from diffusers.utils import logging

    before = logging.get_verbosity()
    load_model(sd, CPU)
    assert capfd.readouterr() == ("", "")
    assert logging.get_verbosity() == before


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.fixture
def broken(sd, tmp_path):
    """A copy of a good folder, to be broken."""
    return shutil.copytree(sd, tmp_path / "broken")


def refused(match, ref, runtime=CPU):
    with pytest.raises(GenkitError, match=match) as caught:
        load_model(ref, runtime)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def edit(folder, **changes):
    path = folder / "model_index.json"
    index = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in index.items() if value is not ...}))


def test_pickled_weights_are_refused_with_the_remedy(broken):
    tensors = load_file(broken / "unet" / "diffusion_pytorch_model.safetensors")
    torch.save(tensors, broken / "unet" / "diffusion_pytorch_model.bin")
    (broken / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    refused("has its weights only pickled.*use_safetensors=False", broken)


def test_code_that_comes_with_a_model_is_not_run(broken):
    (broken / "unet" / "evil.py").write_text("raise SystemExit")
    edit(broken, unet=["evil", "UNet2DConditionModel"])
    refused("code that comes with a model is not run", broken)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"unet": ...}, "has neither a unet nor a transformer"),
        ({"vae": [None, None]}, "has no vae in its model_index.json"),
        ({"_class_name": "AudioLDM2Pipeline"}, "is a model of AudioLDM2Pipeline, which genkit does not run"),
        ({"_class_name": ["mine", "Pipeline"]}, "does not name a pipeline"),
        ({"unet": ["diffusers", "NoSuchModel"]}, "diffusers.NoSuchModel, which is neither"),
    ],
)
def test_an_index_that_names_no_whole_model_is_refused(broken, changes, named):
    edit(broken, **changes)
    refused(named, broken)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_index_is_one_line(broken, text):
    (broken / "model_index.json").write_bytes(text)
    refused("model_index.json", broken)


def test_a_file_that_is_cut_short_is_one_line(broken):
    file = broken / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused("is damaged.*get it again", broken)


def test_a_part_that_lacks_weights_is_no_random_numbers(broken):
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_out.weight"], tensors["mid_block.resnets.0.conv1.weight"]
    save_file(tensors, file)
    refused(r"unet lacks 2 weights \(conv_out.weight, ", broken)


def test_a_text_encoder_that_lacks_weights_is_no_random_numbers(broken):
    file = broken / "text_encoder" / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if "layers.1." not in name}
    save_file(tensors, file)
    refused("text_encoder lacks", broken)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_part_that_is_missing_is_one_line(broken, part):
    shutil.rmtree(broken / part)
    refused(f"has no {part}/; it is incomplete", broken)


@pytest.mark.parametrize("file", ["unet/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("text", [b"{", b"{}"])
def test_a_damaged_configuration_is_one_line(broken, file, text):
    (broken / file).write_bytes(text)
    if text == b"{}" and file.startswith("scheduler"):
        assert load_model(broken, CPU)  # every value has a default
    else:
        refused("cannot be read|does not fit|lacks", broken)


def test_folders_and_files_of_other_kinds_are_called_by_their_names(sd, tmp_path):
    (tmp_path / "empty").mkdir()
    refused("has no model_index.json and no .safetensors", tmp_path / "empty")
    refused(r"one part of a model \(AutoencoderKL\): name the folder around it", sd / "vae")
    refused(r"one part of a model \(CLIPTextModel\)", sd / "text_encoder")
    (lora := tmp_path / "adapter").mkdir()
    save_file({"x": torch.zeros(1)}, lora / "pytorch_lora_weights.safetensors")
    (lora / "adapter_config.json").write_text("{}")
    (lora / "config.json").write_text("{}")
    refused("it is a LoRA, which goes beside a model: --lora", lora)
    refused("offline mode is on", "org/nothing")
    refused("did you mean 'sd-turbo'", "sd-turb")
    refused("does not exist", tmp_path / "none.safetensors")


def test_a_model_for_depth_or_editing_is_refused(tmp_path):
    kit.save_sd(tmp_path / "edit", in_channels=8)
    refused("takes 8 channels where text to image takes 4 and inpainting 9", tmp_path / "edit")


def test_a_model_larger_than_memory_is_refused_before_it_is_read(sd, monkeypatch):
    monkeypatch.setattr(Runtime, "free_memory", lambda self: 1_000_000)
    with pytest.raises(DeviceError, match=r"takes 0\.0 GB of memory, and 0\.0 GB are free: --dtype bfloat16"):
        load_model(sd, CPU)


# ------------------------------------------------------------------------------------------------------------- hub

FILES = [
    "model_index.json",
    "README.md",
    "v1-5-pruned.safetensors",
    "v1-5-pruned.ckpt",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/pytorch_model.bin",
    "text_encoder/flax_model.msgpack",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "safety_checker/model.safetensors",
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
]


@pytest.mark.parametrize(("dtype", "sign"), [(torch.float32, ""), (torch.bfloat16, ".fp16")])
def test_of_a_repository_one_precision_and_one_format_are_fetched(dtype, sign):
    found = folders.wanted(FILES, dtype, "org/name")
    assert sorted(found) == sorted(
        [
            "model_index.json",
            "unet/config.json",
            f"unet/diffusion_pytorch_model{sign}.safetensors",
            "text_encoder/config.json",
            f"text_encoder/model{sign}.safetensors",
            "tokenizer/vocab.json",
            "tokenizer/merges.txt",
            *FILES[-3:],
        ]
    )


def test_a_repository_of_files_asks_for_one():
    assert folders.wanted(["a.safetensors", "README.md"], torch.float32, "org/name") == ["a.safetensors"]
    with pytest.raises(ModelError, match="name one of its files, as org/name:a"):
        folders.wanted(["a.safetensors", "b.safetensors"], torch.float32, "org/name")


def test_a_model_in_the_hubs_cache_loads_offline(sd, tmp_path, monkeypatch):
    from huggingface_hub import constants

    repository = tmp_path / "models--org--name"
    shutil.copytree(sd, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(paint(load_model("org/name", CPU).pipe), paint(load_model(sd, CPU).pipe))


# --------------------------------------------------------------------------------------------------------- inspect


def stored(network):
    """Numbers in a network's file: what is shared is there once."""
    return sum({t.data_ptr(): t.numel() for t in network.state_dict().values()}.values())


def test_a_model_is_described_by_its_headers_as_it_is_loaded(sd, inpainting, sdxl, sd3, flux_dev):
    for folder in (sd, inpainting, sdxl, sd3, flux_dev):
        said, model = describe(folder), load_model(folder, CPU)
        assert said is not None
        assert said["is"] == model.words
        networks = {name: part for name, part in model.pipe.components.items() if isinstance(part, torch.nn.Module)}
        assert said["parts"] == {name: stored(part) for name, part in networks.items()}


def test_inspect_tells_a_folder(sd, run, tmp_path):
    done = run("inspect", sd)
    assert done.status == 0
    assert "Stable Diffusion 1, text to image, 64x64 px" in done.out
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(1, 1)}, tmp_path / "x.safetensors")
    assert "it looks like a LoRA" in run("inspect", tmp_path / "x.safetensors").out
    assert describe(tmp_path) is None


def test_parts_are_measured_in_bytes_of_the_dtype(sd):
    model = load_model(sd, HALF)
    parts = memory.parts_of(model.pipe)
    assert sum(parts.values()) >= folders.values(sd, torch.bfloat16) > 0
    assert weights.metadata(sd / "unet" / "diffusion_pytorch_model.safetensors") == {"format": "pt"}
