"""Text to pictures: as diffusers makes them, each by its own seed, whatever is made beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import painting_kit as kit
import pytest
import torch

from genkit.errors import Cancelled, DeviceError, GenkitError
from genkit.media import provenance
from genkit.runtime import Runtime
from pipelines.stable_diffusion import decoding, painting
from pipelines.stable_diffusion.loading import load_model
from pipelines.stable_diffusion.pipeline import Params, StableDiffusion

CLOSE = 1e-5
HALF = 2e-2  # of the same in bfloat16, which has eight bits
ALONE = 1.6e-5  # of a picture in a batch from its single run, in float32


@pytest.fixture
def painter(sd: Path) -> Any:
    return kit.loaded(sd)


class Count:
    """How often a network was asked, and for how many pictures at most."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.calls, self.most = 0, 0
        self.hook = network.register_forward_pre_hook(self._seen, with_kwargs=True)

    def _seen(self, network: Any, args: Any, kwargs: Any) -> None:
        self.calls, self.most = self.calls + 1, max(self.most, len(args[0] if args else kwargs["hidden_states"]))

    def __enter__(self) -> Count:
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


@pytest.mark.parametrize(
    ("name", "pipe"),
    [
        ("sd", "StableDiffusionPipeline"),
        ("sdxl", "StableDiffusionXLPipeline"),
        ("sd3", "StableDiffusion3Pipeline"),
        ("flux", "FluxPipeline"),
        ("flux_dev", "FluxPipeline"),
    ],
)
def test_a_picture_is_the_one_that_diffusers_makes(name: str, pipe: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    own = kit.loaded(folder)
    size = {"width": 64, "height": 64}
    ours = own(prompt=kit.PROMPT, seed=7, num_images_per_prompt=2, num_inference_steps=kit.STEPS, **size)
    theirs = kit.plain(folder, pipe)(
        [kit.PROMPT] * 2,
        num_inference_steps=kit.STEPS,
        **size,
        guidance_scale=own.painter.model.defaults.guidance_scale,
        generator=kit.generators(7, 8),
        output_type="np",
    )
    assert kit.apart(kit.floats(ours), theirs.images) <= CLOSE
    assert ours.seeds == [7, 8]


def test_negative_prompt_and_guidance_are_those_of_diffusers(sd: Path, painter: Any) -> None:
    params = {"negative_prompt": "snow", "guidance_scale": 4.5, "num_inference_steps": kit.STEPS}
    ours = painter(prompt=kit.PROMPT, seed=3, width=72, height=48, **params)
    pipe = kit.plain(sd, "StableDiffusionPipeline")
    theirs = pipe(kit.PROMPT, width=72, height=48, generator=kit.generators(3), output_type="np", **params)
    assert kit.apart(kit.floats(ours), theirs.images) <= CLOSE
    assert ours.images[0].size == (72, 48)


def test_the_same_call_makes_the_same_picture_whatever_came_between(painter: Any) -> None:
    params = {"prompt": kit.PROMPT, "seed": 5, "num_inference_steps": kit.STEPS}
    first = painter(**params)
    painter(prompt="a green fox", scheduler="euler a", seed=1, num_inference_steps=2, clip_skip=1)
    assert np.array_equal(kit.floats(first), kit.floats(painter(**params)))


def test_requests_of_one_shape_are_one_run_and_each_picture_is_its_own(painter: Any) -> None:
    asked = [
        Params(prompt="a red apple", seed=1, num_inference_steps=kit.STEPS, num_images_per_prompt=2),
        Params(prompt="a green fox in the snow", seed=9, num_inference_steps=kit.STEPS, negative_prompt="cat"),
        Params(prompt="the cat", seed=4, num_inference_steps=kit.STEPS),
    ]
    assert len({StableDiffusion.batch_key(params) for params in asked}) == 1
    with Count(painter.painter.model.denoiser) as count:
        together = painter.generate(asked)
    assert count.most == 2 * 4  # four pictures, with and without their prompts
    assert count.calls == kit.STEPS + 1  # PNDM's own way of counting
    for params, output in zip(asked, together, strict=True):
        alone = painter.generate([params])[0]
        assert kit.apart(kit.floats(output), kit.floats(alone)) <= ALONE
        assert output.seeds == [params.seed + i for i in range(params.num_images_per_prompt)]
    assert kit.apart(kit.floats(together[0])[:1], kit.floats(together[2])) > 0.01


def test_in_half_precision_a_picture_is_its_single_run_to_rounding(sd: Path) -> None:
    painter = kit.loaded(sd, "bfloat16")
    params = {"prompt": kit.PROMPT, "num_inference_steps": kit.STEPS, "scheduler": "euler a"}
    together = painter(**params, seed=5, num_images_per_prompt=3)
    for i in range(3):
        alone = painter(**params, seed=5 + i)
        assert kit.apart(kit.floats(together)[i : i + 1], kit.floats(alone)) <= HALF


def test_what_changes_the_shape_changes_the_key() -> None:
    def key(**more: Any) -> Any:
        return StableDiffusion.batch_key(Params(prompt="a", seed=1, **more))

    assert key() == key(num_images_per_prompt=3)
    others = [{"width": 128}, {"num_inference_steps": 9}, {"scheduler": "ddim"}, {"clip_skip": 1}, {"upscale": 2}]
    assert len({key(), *(key(**other) for other in others)}) == len(others) + 1


def test_pictures_beyond_what_runs_at_once_come_out_the_same(painter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    params = {"prompt": kit.PROMPT, "seed": 2, "num_inference_steps": 2, "num_images_per_prompt": 3}
    whole = painter(**params)
    monkeypatch.setitem(painting.PIXELS, "cpu", 2 * 64 * 64)
    steps: list[tuple[int, int]] = []
    with Count(painter.painter.model.denoiser) as count:
        parts = painter(**params, progress=lambda step, total, **_: steps.append((step, total)))
    assert count.most == 2 * 2
    assert kit.apart(kit.floats(whole), kit.floats(parts)) <= ALONE
    assert steps[-1] == (4, 4)
    assert steps == sorted(steps)


def test_where_memory_ends_fewer_run_at_once_and_the_pictures_are_the_same(sd: Path) -> None:
    def short_of_memory(network: Any, args: Any) -> None:
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    params = {"prompt": kit.PROMPT, "seed": 2, "num_inference_steps": 2, "num_images_per_prompt": 3}
    painter = StableDiffusion.load(sd, Runtime(torch.device("cpu")))
    whole = painter(**params)
    hook = painter.painter.model.denoiser.register_forward_pre_hook(short_of_memory)
    assert kit.apart(kit.floats(whole), kit.floats(painter(**params))) <= ALONE
    hook.remove()
    painter.painter.model.denoiser.register_forward_pre_hook(lambda *_: short_of_memory(None, [range(9)]))
    with pytest.raises(DeviceError, match="no memory for a single item"):
        painter(**params)


def test_progress_tells_every_step_once(painter: Any) -> None:
    told: list[tuple[int, int]] = []
    painter(
        prompt=kit.PROMPT,
        seed=1,
        num_inference_steps=5,
        scheduler="ddim",
        progress=lambda step, total, **_: told.append((step, total)),
    )
    assert told == [(step, 5) for step in range(1, 6)]


def test_a_preview_can_be_had_at_every_step_and_changes_nothing(painter: Any) -> None:
    shown: list[Any] = []
    params = {"prompt": kit.PROMPT, "seed": 1, "num_inference_steps": 3, "scheduler": "ddim"}
    plain = painter(**params)
    looked = painter(**params, progress=lambda step, total, *, preview, **_: shown.append(preview()))
    assert len(shown) == 3
    assert all(image.size[0] == image.size[1] for image in shown)
    assert np.array_equal(kit.floats(plain), kit.floats(looked))


def test_a_cancelled_run_hands_nothing_over_and_leaves_nothing_behind(painter: Any) -> None:
    params = {"prompt": kit.PROMPT, "seed": 1, "num_inference_steps": 4, "scheduler": "dpm++ 2m"}
    before = painter(**params)
    config = dict(painter.painter.model.pipe.scheduler.config)

    def stop(step: int, total: int, **_: Any) -> None:
        if step == 2:
            raise Cancelled

    with Count(painter.painter.model.denoiser) as count, pytest.raises(Cancelled):
        painter(**params, progress=stop)
    assert count.calls == 2
    assert dict(painter.painter.model.pipe.scheduler.config) == config
    assert np.array_equal(kit.floats(before), kit.floats(painter(**params)))


def test_what_was_settled_is_told_and_recorded(painter: Any) -> None:
    output = painter(prompt=kit.PROMPT, seed=1, num_inference_steps=2)
    settled = {"num_inference_steps": 2, "guidance_scale": 7.5, "width": 64, "height": 64, "scheduler": "PNDMScheduler"}
    assert output.found == settled
    assert output.provenance.found == settled
    assert output.provenance.models["model"].digest.startswith("sha256:")


def test_a_file_is_made_again_to_the_bit_and_tells_other_tools(sd: Path, run: Any, tmp_path: Path) -> None:
    made = run(
        *("stable-diffusion", "--model", sd, "--prompt", "a red (apple:1.2), noto style", "-n", "snow", "--seed", 7),
        *("-N", 2, "--num-inference-steps", 2, "--clip-skip", 1, "--guidance-scale", 5, "-o", tmp_path / "a.png"),
    )
    assert made.status == 0, made.err
    for name in ("a-1.png", "a-2.png"):
        assert run("rerun", tmp_path / name, "--check").out == "identical\n"
    assert provenance.read_parameters(tmp_path / "a-2.png") == {
        "prompt": "a red (apple:1.2), noto style",
        "negative_prompt": "snow",
        "num_inference_steps": 2,
        "scheduler": "PNDMScheduler",
        "guidance_scale": 5,
        "seed": 8,
        "width": 64,
        "height": 64,
        "Model": sd.name,
        "clip_skip": 1,
        "num_images_per_prompt": 2,
        "upscale_strength": 0.5,
        "Version": f"genkit {provenance.__version__}",
    }


def test_best_of_keeps_the_seeds_of_what_it_keeps(seeing: Path, run: Any, tmp_path: Path) -> None:
    painter = kit.loaded(seeing)
    params = {"prompt": kit.PROMPT, "seed": 3, "num_inference_steps": 2}
    every = painter(**params, num_images_per_prompt=4)
    kept = painter(**params, num_images_per_prompt=2, best_of=4)
    assert kept.info["scores"] == sorted(kept.info["scores"], reverse=True)
    for seed, image in zip(kept.seeds, kept.images, strict=True):
        assert np.array_equal(image.deep, every.images[seed - 3].deep)
    kept.save(tmp_path / "best.png")
    assert provenance.read_parameters(tmp_path / "best-2.png")["seed"] == kept.seeds[1]
    assert run("rerun", tmp_path / "best-2.png", "--check").out == "identical\n"


def test_a_decoder_that_overflows_decodes_again_in_float32(sd: Path) -> None:
    model = load_model(sd, Runtime(torch.device("cpu"), torch.float16))
    with torch.no_grad():
        model.pipe.vae.decoder.conv_in.weight.mul_(2000)
        latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half() * 20
        assert model.pipe.vae.decode(latents / model.pipe.vae.config.scaling_factor).sample.isnan().any()
        pictures = decoding.decode(model, latents, 64, 64)
    assert [tuple(picture.shape) for picture in pictures] == [(3, 64, 64)] * 2
    assert all(picture.isfinite().all() and picture.max() > 0 for picture in pictures)
    assert model.pipe.vae.dtype == torch.float16


def test_what_is_no_picture_is_an_error(sd: Path) -> None:
    model = load_model(sd, Runtime(torch.device("cpu")))
    latents = torch.zeros(1, 4, 8, 8)
    with torch.no_grad():
        with pytest.raises(GenkitError, match="NaN: use --dtype float32"):
            decoding.decode(model, latents * float("nan"), 64, 64)
        model.pipe.vae.decoder.conv_out.bias.fill_(-1e4)
        with pytest.raises(GenkitError, match=r"no picture \(NaN or black all over\)"):
            decoding.decode(model, latents, 64, 64)
