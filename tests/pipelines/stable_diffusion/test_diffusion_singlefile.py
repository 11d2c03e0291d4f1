"""Models in one file: a tiny one paints what its folder paints; the shipped configurations build the published ones."""

from __future__ import annotations

import gzip
import json

import diffusion_kit as kit
import ldm_kit
import pytest
import torch
from safetensors.torch import save_file

from genkit import weights
from genkit.errors import ModelError
from genkit.runtime import Runtime
from pipelines.stable_diffusion import singlefile, vocabulary
from pipelines.stable_diffusion.loading import load_model

CPU = Runtime(torch.device("cpu"))


def paint(pipe, size=64):
    generator = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    made = pipe(["a red apple", "snow"], height=size, width=size, num_inference_steps=3, generator=generator)
    return torch.stack([torch.tensor(list(image.tobytes())) for image in made.images])


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_file_paints_what_its_folder_paints(family, tmp_path, request):
    folder = load_model(request.getfixturevalue(family), CPU)
    file = load_model(ldm_kit.write(folder.pipe, tmp_path / "one.safetensors"), CPU)
    assert file.family == folder.family
    assert file.defaults == folder.defaults
    assert {**file.scheduler_config, "_diffusers_version": ""} == {**folder.scheduler_config, "_diffusers_version": ""}
    assert torch.equal(paint(file.pipe), paint(folder.pipe))


def test_a_file_of_16_bits_is_read_in_the_runtimes_dtype_whole(sd, tmp_path):
    pipe = load_model(sd, CPU).pipe
    tensors = {key: t.half() if t.is_floating_point() else t for key, t in ldm_kit.tensors_of(pipe).items()}
    found = load_model(ldm_kit.write(pipe, tmp_path / "half.safetensors", tensors), CPU)
    for part in (found.pipe.unet, found.pipe.vae, found.pipe.text_encoder):
        assert {p.dtype for p in part.parameters()} == {torch.float32}


def test_a_u_net_of_nine_channels_is_known_by_its_first_layer(inpainting, tmp_path):
    pipe = load_model(inpainting, CPU).pipe
    file = ldm_kit.write(pipe, tmp_path / "holes.safetensors")
    assert load_model(file, CPU).kind == "inpainting"


def test_a_file_without_a_vae_takes_that_of_the_folder_it_lies_in(sd, tmp_path):
    pipe = load_model(sd, CPU).pipe
    tensors = {key: t for key, t in ldm_kit.tensors_of(pipe).items() if not key.startswith("first_stage_model.")}
    file = ldm_kit.write(pipe, tmp_path / "one.safetensors", tensors)
    with pytest.raises(ModelError, match=r"one.safetensors has no vae: put it into the folder"):
        load_model(file, CPU)
    kit.save_sd(tmp_path)
    assert torch.equal(paint(load_model(file, CPU).pipe), paint(pipe))


def test_a_file_that_lacks_weights_is_one_line(sd, tmp_path):
    pipe = load_model(sd, CPU).pipe
    tensors = ldm_kit.tensors_of(pipe)
    del tensors["model.diffusion_model.middle_block.0.in_layers.2.weight"]
    file = ldm_kit.write(pipe, tmp_path / "lacking.safetensors", tensors)
    with pytest.raises(ModelError, match=r"\(unet\) does not fit UNet2DConditionModel: 1 missing"):
        load_model(file, CPU)


def test_a_file_that_does_not_fit_its_familys_size_is_one_line(sd, tmp_path):
    file = ldm_kit.write(load_model(sd, CPU).pipe, tmp_path / "tiny.safetensors")
    file.with_name("tiny.config.json").unlink()
    with pytest.raises(ModelError, match="of another shape") as caught:
        load_model(file, CPU)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["{", "[]", '{"unet": {}}', '{"unet": 3}'])
def test_a_damaged_configuration_beside_it_is_one_line(sd, tmp_path, text):
    file = ldm_kit.write(load_model(sd, CPU).pipe, tmp_path / "tiny.safetensors")
    file.with_name("tiny.config.json").write_text(text)
    with pytest.raises(ModelError, match="describes no model"):
        load_model(file, CPU)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (["lora_unet_down_blocks_0.lora_up.weight"], "a LoRA; give it as --lora"),
        (["encoder.down.0.block.0.conv1.weight", "decoder.up.0.block.0.conv1.weight"], "an autoencoder"),
        (["text_model.encoder.layers.0.mlp.fc1.weight"], "a CLIP text encoder"),
        (["res1.conv1.conv2d.weight"], "a fast-neural-style"),
        (["whatever"], "no denoiser is in it"),
    ],
)
def test_a_file_of_another_kind_is_called_by_its_name(tmp_path, keys, named):
    save_file({key: torch.zeros(2, 2) for key in keys}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=named):
        load_model(tmp_path / "x.safetensors", CPU)


# ------------------------------------------------------------------------------------------- the published models

PUBLISHED = {  # parameters, as the model cards and papers state them
    ("sd1", "unet"): 859_520_964,
    ("sd1", "vae"): 83_653_863,
    ("sd1", "text_encoder"): 123_060_480,
    ("sd2", "unet"): 865_910_724,
    ("sd2", "text_encoder"): 340_387_840,
    ("sdxl", "unet"): 2_567_463_684,
    ("sdxl", "text_encoder_2"): 694_659_840,
    ("sd3", "transformer"): 2_028_328_000,
    ("sd3", "vae"): 83_819_683,
    ("flux", "transformer"): 11_891_178_560,
}


def built(family, name):
    from accelerate import init_empty_weights

    config = json.loads((singlefile.CONFIGS / f"{family}.json").read_text())[name]
    kind = singlefile._class(config.pop("class"))
    with init_empty_weights():
        return singlefile._built(kind, config, singlefile.CONFIGS)


@pytest.mark.parametrize(("family", "name"), PUBLISHED)
def test_the_shipped_configurations_are_of_the_published_size(family, name):
    assert sum(p.numel() for p in built(family, name).parameters()) == PUBLISHED[family, name]


def test_stable_diffusion_1_has_the_published_names_and_shapes():
    unet, vae, text = (built("sd1", name) for name in ("unet", "vae", "text_encoder"))
    tensors = ldm_kit.unet_tensors(unet) | ldm_kit.vae_tensors(vae)
    tensors |= ldm_kit.clip_tensors(text, "cond_stage_model.transformer.")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert len(shapes) == 686 + 248 + 197
    known = {
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        "model.diffusion_model.input_blocks.4.1.proj_in.weight": (640, 320 * 2, 1, 1),
        "model.diffusion_model.input_blocks.9.0.op.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.middle_block.1.transformer_blocks.0.ff.net.0.proj.weight": (10240, 1280),
        "model.diffusion_model.output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1),
        "model.diffusion_model.out.2.weight": (4, 320, 3, 3),
        "model.diffusion_model.time_embed.2.weight": (1280, 1280),
        "first_stage_model.decoder.up.1.block.0.nin_shortcut.weight": (256, 512, 1, 1),
        "first_stage_model.encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
        "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
    }
    assert {name: shapes[name] for name in known} == known


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sdxl-refiner"])
def test_every_published_tensor_finds_its_place(family):
    """The original layout of the full size, on the meta device, through genkit's own reading and back."""
    layout = {"sd1": ("text_encoder",), "sd2": ("text_encoder",), "sdxl": ("text_encoder", "text_encoder_2")}
    names = layout.get(family, ("text_encoder_2",))
    unet, vae = built(family, "unet"), built(family, "vae")
    tensors = ldm_kit.unet_tensors(unet) | ldm_kit.vae_tensors(vae)
    networks = {"unet": unet, "vae": vae}
    for name in names:
        networks[name], prefix = built(family, name), singlefile.TEXT[family][name]
        write = ldm_kit.open_clip_tensors if prefix.endswith(".model.") else ldm_kit.clip_tensors
        tensors |= write(networks[name], prefix)
    assert singlefile.recognise(tensors, singlefile.CONFIGS) == family
    for name, network in networks.items():
        found = singlefile.translate(family, name, network, tensors)
        wanted = {key: tensor.shape for key, tensor in network.state_dict().items()}
        assert {key: found[key].shape for key in wanted} == wanted, name


def test_a_u_net_alone_is_known_by_the_text_it_attends_to():
    for family in ("sd1", "sd2", "sdxl", "sdxl-refiner"):
        assert singlefile.recognise(ldm_kit.unet_tensors(built(family, "unet")), singlefile.CONFIGS) == family


# ------------------------------------------------------------------------------------------ two kinds of one family


def sd2_tensors(**more):
    first = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3)}
    return first | {"cond_stage_model.model.ln_final.weight": torch.zeros(1024), **more}


@pytest.mark.parametrize(
    ("name", "beside", "about", "more", "predicted"),
    [
        ("v2-1_768-ema", "", {}, {}, "v_prediction"),
        ("v2-1_512-ema", "", {}, {}, "epsilon"),
        ("mine", 'model:\n  params:\n    parameterization: "v"\n', {}, {}, "v_prediction"),
        ("mine-512", "model:\n  params:\n    parameterization: v\n", {}, {}, "v_prediction"),
        ("mine", "model:\n  params: {}\n", {}, {}, "epsilon"),
        ("mine", "", {"modelspec.prediction_type": "epsilon"}, {}, "epsilon"),
        ("mine", "", {}, {"global_step": torch.tensor(875_000)}, "epsilon"),
    ],
)
def test_stable_diffusion_2_predicts_what_the_file_is_said_to(tmp_path, name, beside, about, more, predicted):
    file = tmp_path / f"{name}.safetensors"
    weights.write(file, sd2_tensors(**more), about)
    if beside:
        file.with_suffix(".yaml").write_text(beside)
    layout = singlefile.layout_of("sd2", weights.read(file), file)
    assert layout["scheduler"]["prediction_type"] == predicted
    assert layout["unet"]["sample_size"] == (96 if predicted == "v_prediction" else 64)


def test_a_file_that_says_so_predicts_velocity(tmp_path):
    first = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3)}
    layout = singlefile.layout_of("sdxl", first | {"v_pred": torch.zeros(0)}, tmp_path / "x.safetensors")
    assert layout["scheduler"]["prediction_type"] == "v_prediction"


# ------------------------------------------------------------------------------------------------------ vocabulary


def test_the_vocabulary_of_a_file_without_one_is_asked_for_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary, "PACKAGES", ())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ModelError, match=r"pip install 'genkit-media\[single-file\]'"):
        vocabulary.clip_tokenizer(tmp_path / "one.safetensors")


def test_a_package_lends_its_vocabulary(tmp_path, monkeypatch):
    package = tmp_path / "packed_vocabulary"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('not to be run')")
    with gzip.open(package / vocabulary.PACKED, "wt", encoding="utf-8") as file:
        file.write("#version\nr e\nre d</w>\na p\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(vocabulary, "PACKAGES", ("packed_vocabulary",))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    tokenizer = vocabulary.clip_tokenizer(tmp_path / "one.safetensors", "!")
    assert tokenizer.tokenize("Red ape") == ["red</w>", "ap", "e</w>"]
    assert tokenizer.convert_tokens_to_ids(["!", "a", "a</w>", "re", "<|startoftext|>"]) == [0, 64, 320, 512, 515]
    assert tokenizer.pad_token_id == 0


def test_clips_own_vocabulary_numbers_words_as_clip_does(tmp_path, monkeypatch):
    pytest.importorskip("open_clip")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    tokenizer = vocabulary.clip_tokenizer(tmp_path / "one.safetensors")
    assert len(tokenizer) == vocabulary.SIZE
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_a_vocabulary_in_the_hubs_cache_is_found(tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / ("a" * 40)
    kit.clip_tokenizer().save_pretrained(snapshot / "tokenizer")
    monkeypatch.setattr(vocabulary, "PACKAGES", ())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ModelError, match="comes without its tokenizer"):  # it is not CLIP's: too few tokens
        vocabulary.clip_tokenizer(tmp_path / "one.safetensors")
