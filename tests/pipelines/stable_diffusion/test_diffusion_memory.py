"""Fitting into memory: what is chosen, what tiles and slices change, and a picture that is painted all the same.

Offloading itself needs a GPU; here are the choices that lead to it, and what a pipeline around shared parts takes over.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

import genkit
from genkit.errors import DeviceError, OutOfMemory
from genkit.media import provenance
from genkit.runtime import Runtime
from pipelines.stable_diffusion import memory
from pipelines.stable_diffusion.loading import load_model

CPU = Runtime(torch.device("cpu"))
GB = 10**9


@pytest.fixture(scope="module")
def model(sd):
    return load_model(sd, CPU)


def test_a_model_is_whole_where_it_fits_and_in_turns_where_it_does_not():
    xl = {"unet": 5 * GB, "text_encoder": GB // 4, "text_encoder_2": int(1.4 * GB), "vae": GB // 6}
    work = 2 * GB
    chosen = [memory.choose(xl, work, free * GB) for free in (80, 24, 10, 6, 1)]
    assert chosen == ["whole", "whole", "parts", "layers", "layers"]


def test_more_memory_never_leads_to_a_slower_way():
    parts = {"unet": 3 * GB, "vae": GB}
    order = [memory.ORDER.index(memory.choose(parts, GB, free * GB // 4)) for free in range(1, 60)]
    assert order == sorted(order, reverse=True)
    assert {*order} == {0, 1, 2}


def test_each_step_down_takes_less_until_there_is_none():
    assert [memory.lower(placement) for placement in memory.ORDER] == ["parts", "layers", None]


def test_on_a_cpu_there_is_nowhere_to_step_down_to(model):
    assert model.placement == "whole"
    assert model.notes == []
    assert not model.step_down()


def test_a_gpu_that_is_short_of_memory_gets_less_of_the_model_each_time(sd, monkeypatch):
    """With a device that takes nothing: what is asked of diffusers, in its order."""
    model = load_model(sd, CPU)
    asked = []
    model.runtime = SimpleNamespace(device=torch.device("cuda", 0), free_memory=lambda: 0, release=lambda: None)
    pipeline = type(model.pipe)
    monkeypatch.setattr(pipeline, "enable_model_cpu_offload", lambda self, device: asked.append(("parts", str(device))))
    monkeypatch.setattr(pipeline, "enable_group_offload", lambda self, device, **how: asked.append(("layers", how)))
    assert model.step_down() == "the parts of the model take turns on cuda:0"
    assert model.step_down() == "the layers of the model take turns on cuda:0"
    assert model.step_down() is None
    assert asked == [("parts", "cuda:0"), ("layers", {"offload_type": "leaf_level", "use_stream": True})]
    assert model.placement == "layers"
    assert model.notes == [
        "the layers of the model take turns on cuda:0, which has 0.0 GB free for 0.0 GB: much slower"
    ]


def test_a_variant_knows_how_the_parts_are_offloaded(sd):
    model = load_model(sd, CPU)
    model.pipe._all_hooks = ["a hook"]
    assert model.variant("image")._all_hooks is model.pipe._all_hooks


def test_the_need_of_decoding_grows_with_the_picture_and_its_dtype(model):
    vae = model.pipe.vae
    need = memory.decoding(vae, 512, 512)
    assert memory.decoding(vae, 1024, 512) == 2 * need
    half = SimpleNamespace(config=vae.config, dtype=torch.bfloat16)
    assert memory.decoding(half, 512, 512) * 2 == need


def test_the_need_of_decoding_is_that_which_is_taken():
    """The widths of Stable Diffusion's decoder: at 512 px in float32 its widest output alone is 256 MiB."""
    config = SimpleNamespace(block_out_channels=(128, 256, 512, 512))
    need = memory.decoding(SimpleNamespace(config=config, dtype=torch.float32), 512, 512)
    assert 3 * 2**28 < need < 6 * 2**28


def test_a_weight_too_large_for_the_machine_is_refused_in_one_line():
    with pytest.raises(DeviceError, match=r"model flux-dev takes 1000000\.0 GB of memory.*--dtype bfloat16"):
        memory.check("flux-dev", 10**15, CPU)
    memory.check("flux-dev", 10, CPU)


def test_slices_are_the_same_picture(model):
    vae, latents = model.pipe.vae, torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = vae.decode(latents).sample
        vae.enable_slicing()
        try:
            sliced = vae.decode(latents).sample
        finally:
            vae.disable_slicing()
    assert (whole - sliced).abs().max() < 1e-5


def test_tiles_are_taken_where_memory_is_short_and_only_there(model, monkeypatch):
    vae = model.pipe.vae
    with memory.tiled(vae, CPU, 64, 64) as words:
        assert words == ""
        assert not vae.use_tiling
    monkeypatch.setattr(Runtime, "free_memory", lambda self: 1000)
    with memory.tiled(vae, CPU, 128, 96) as words:
        assert words.startswith("decoded in tiles of 64 px: 128x96 px in one piece takes")
        assert vae.use_tiling
    assert not vae.use_tiling


def test_a_tiled_picture_is_close_to_one_in_one_piece(model, monkeypatch):
    """Where the decoder sees no further than a tile: a random one's group norms are made weak, which look at it all."""
    vae = copy.deepcopy(model.pipe.vae)
    for norm in vae.modules():
        if isinstance(norm, torch.nn.GroupNorm):
            norm.eps = 100.0
    latents = torch.randn(1, 4, 24, 24, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(Runtime, "free_memory", lambda self: 1000)
    with torch.no_grad():
        whole = vae.decode(latents).sample
        with memory.tiled(vae, CPU, 192, 192):
            tiles = vae.decode(latents).sample
    assert tiles.shape == whole.shape
    error = (tiles - whole).square().mean().sqrt() / whole.std()
    assert 0 < error < 0.02


def test_a_request_is_painted_in_tiles_and_says_so(sd, run, tmp_path, monkeypatch):
    from genkit.media.image import Image

    monkeypatch.setattr("pipelines.stable_diffusion.memory.decoding", lambda vae, width, height: 10**15)
    arguments = ("-p", "snow", "--seed", 1, "--num-inference-steps", 2, "-W", 128, "-H", 128)
    done = run("stable-diffusion", "--model", sd, *arguments, "-o", tmp_path / "x.png", "--dtype", "float32")
    assert done.status == 0, done.err
    assert done.err.count("decoded in tiles of 64 px") == 1
    assert Image.open(tmp_path / "x.png").size == (128, 128)


# ------------------------------------------------------------------------------------------ memory that runs out anyway


class Short:
    """A decoder that has no room for more than so many pixels at once, on a machine that thinks it has."""

    def __init__(self, painter, pixels):
        self.pixels, self.ran_out = pixels, 0
        painter.painter.model.pipe.vae.decoder.register_forward_pre_hook(self)

    def __call__(self, decoder, given):
        latents = given[0]
        if latents.shape[-1] * latents.shape[-2] * 64 > self.pixels:
            self.ran_out += 1
            torch.empty(2**60)


@pytest.fixture
def painter(sd):
    return genkit.load("stable-diffusion", model=sd, device="cpu", dtype="float32")


def paint(painter, width, height, **more):
    return painter(prompt="snow", seed=1, num_inference_steps=1, width=width, height=height, **more)


def test_a_picture_that_does_not_fit_is_made_in_tiles_and_recorded_as_such(painter, tmp_path):
    whole, small = paint(painter, 128, 96), paint(painter, 64, 64)
    short = Short(painter, 80 * 80)
    tiled = paint(painter, 128, 96)
    words = "decoded in tiles of 64 px: 128x96 px in one piece takes 0.0 GB, more than there was"
    assert tiled.degraded == f"{words}; decodes pictures from 128x96 px on in tiles"
    assert words in tiled.notes
    assert provenance.read(tiled.save(tmp_path / "tiled.png")[0]).runtime["memory"] == words
    assert "memory" not in whole.provenance.runtime
    assert tiled.images[0].pil.tobytes() != whole.images[0].pil.tobytes()
    assert short.ran_out == 1
    assert paint(painter, 128, 96).images[0].pil.tobytes() == tiled.images[0].pil.tobytes()
    assert short.ran_out == 1  # and not again for the next of that size
    again = paint(painter, 64, 64)
    assert again.images[0].pil.tobytes() == small.images[0].pil.tobytes()  # smaller ones stay in one piece
    assert again.provenance == small.provenance


def test_a_smaller_picture_that_runs_out_later_is_tiled_too(painter):
    Short(painter, 80 * 80)
    paint(painter, 256, 256)
    assert "decodes pictures from 128x96 px on in tiles" in paint(painter, 128, 96).degraded


def test_what_does_not_fit_even_in_tiles_is_an_error_of_one_line(painter):
    Short(painter, 60 * 60)
    with pytest.raises(OutOfMemory, match="cpu has no memory for a single item"):
        paint(painter, 128, 128)
    with pytest.raises(OutOfMemory, match="cpu has no memory"):
        paint(painter, 128, 128, seamless="both")  # has no tiles


def test_a_picture_of_one_tile_is_cut_in_half_where_it_must(model):
    vae = model.pipe.vae
    sizes = [(64, 64), (128, 64), (128, 128), (96, 200), (1024, 1024)]
    assert [memory.tile_side(vae, *size) for size in sizes] == [None, 64, 64, 64, 64]
    large = SimpleNamespace(tile_sample_min_size=[1024, 1024], tile_latent_min_size=128)
    assert [memory.tile_side(large, side, side) for side in (64, 512, 1024, 1032, 2048, 4096)] == [
        None, 256, 512, 512, 1024, 1024,
    ]  # fmt: skip
    assert memory.tile_side(SimpleNamespace(), 512, 512) is None
    before = vae.tile_sample_min_size, vae.tile_latent_min_size
    with memory.tiled(vae, CPU, 128, 128, ran_out=True) as words:
        assert words
    assert before == (vae.tile_sample_min_size, vae.tile_latent_min_size)
