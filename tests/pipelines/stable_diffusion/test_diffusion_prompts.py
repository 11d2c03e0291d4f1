"""Encoded prompts: diffusers' own to the bit where it can do it, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusion_kit as kit
import pytest
import torch

from genkit.errors import InputError
from genkit.runtime import Runtime
from pipelines.stable_diffusion import prompts
from pipelines.stable_diffusion.loading import Model, load_model
from pipelines.stable_diffusion.prompts import Prompts

LONG = "a red apple, " * 40
MODELS: dict[Path, Model] = {}


def prompter(folder: Path) -> Prompts:
    """A fresh one around a model that is loaded once."""
    if folder not in MODELS:
        MODELS[folder] = load_model(folder, Runtime(torch.device("cpu")))
    return Prompts(MODELS[folder])


@pytest.fixture(scope="session")
def short(models: Path) -> Path:
    """A model whose tokenizer has 32 places, as `emoji` has."""
    tokenizer = kit.clip_tokenizer()
    tokenizer.model_max_length = 32
    return kit.save_sd(
        models / "short", tokenizer=tokenizer, text_encoder=kit.clip_text(tokenizer, max_position_embeddings=32)
    )


def same(given: Any, expected: dict[str, Any]) -> None:
    assert given.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(given[name], value), name


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
@pytest.mark.parametrize("negative", ["", "green"])
def test_a_short_prompt_is_what_diffusers_makes_of_it(
    sd: Path, negative: str, clip_skip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = prompter(sd)
    if clip_skip:  # diffusers 0.42 looks for the last norm where transformers 5 has it no more
        monkeypatch.setattr(type(of.model.pipe.text_encoder), "text_model", property(lambda x: x), raising=False)
    with torch.no_grad():
        positive, other = of.model.pipe.encode_prompt(
            "A red fox, in the snow!", "cpu", 1, True, negative, clip_skip=clip_skip or None
        )
    encoded = of.encode("A red fox, in the snow!", negative, clip_skip=clip_skip)
    same(encoded.embeds, {"prompt_embeds": positive, "negative_prompt_embeds": other})
    same(of.encode("A red fox, in the snow!", clip_skip=clip_skip, guided=False).embeds, {"prompt_embeds": positive})
    assert encoded.notes == ()


def test_a_model_of_32_places_is_read_the_same(short: Path) -> None:
    of = prompter(short)
    with torch.no_grad():
        positive, other = of.model.pipe.encode_prompt("a red apple, noto style", "cpu", 1, True, "blob")
    same(
        of.encode("a red apple, noto style", "blob").embeds,
        {"prompt_embeds": positive, "negative_prompt_embeds": other},
    )
    assert of.encode("a red apple " * 20, "blob").embeds["prompt_embeds"].shape == (1, 2 * 32, kit.HIDDEN)


@pytest.mark.parametrize("clip_skip", [0, 1])
@pytest.mark.parametrize("negative", ["", "green"])
def test_sdxl_is_what_diffusers_makes_of_it(sdxl: Path, negative: str, clip_skip: int) -> None:
    of = prompter(sdxl)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    with torch.no_grad():
        found = of.model.pipe.encode_prompt(
            "a fox", negative_prompt=negative or None, clip_skip=clip_skip or None, device="cpu"
        )
    same(of.encode("a fox", negative, clip_skip=clip_skip).embeds, dict(zip(names, found, strict=True)))


@pytest.mark.parametrize("negative", ["", "green"])
def test_sd3_is_what_diffusers_makes_of_it(sd3: Path, negative: str) -> None:
    of = prompter(sd3)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    with torch.no_grad():
        found = of.model.pipe.encode_prompt("a fox", None, None, negative_prompt=negative or None)
    encoded = of.encode("a fox", negative)
    same(encoded.embeds, dict(zip(names, found, strict=True)))
    assert encoded.notes == ()


def test_flux_is_what_diffusers_makes_of_it(flux: Path) -> None:
    of = prompter(flux)
    with torch.no_grad():
        hidden, pooled, _ = of.model.pipe.encode_prompt("a fox", None)
    same(of.encode("a fox", guided=False).embeds, {"prompt_embeds": hidden, "pooled_prompt_embeds": pooled})


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("prompt", ["a (red:1.0) fox", "a (r:1)(ed:1.0) fox", r"(a red fox:1.00)"])
def test_weight_1_is_no_weight(family: str, prompt: str, request: pytest.FixtureRequest) -> None:
    of = prompter(request.getfixturevalue(family))
    same(of.encode(prompt, prompt).embeds, dict(of.encode("a red fox", "a red fox").embeds))


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_weight_goes_along_the_line_from_the_empty_prompt(family: str, request: pytest.FixtureRequest) -> None:
    of = prompter(request.getfixturevalue(family))

    def read(text: str) -> Any:
        return of.encode(text, guided=False).embeds["prompt_embeds"][0]

    full, empty = read("a red fox"), read("")
    for weight in (0.0, 0.5, 1.3, -1.0):
        found = read(f"a (red:{weight}) fox")
        assert torch.allclose(found[2], empty[2] + weight * (full[2] - empty[2]), atol=1e-6)
        others = [i for i in range(len(full)) if i != 2]  # the beginning and "a" stand before it
        assert torch.equal(found[others], full[others])
    assert torch.equal(read("a (red:0) fox")[2], empty[2])


def test_a_long_prompt_is_its_chunks_side_by_side(sd: Path) -> None:
    of = prompter(sd)
    tokens = of.model.pipe.tokenizer(LONG, add_special_tokens=False, verbose=False).input_ids
    assert 75 < len(tokens) <= 3 * 75
    chunks = [tokens[i : i + 75] for i in range(0, len(tokens), 75)]
    encoder, end = of.model.pipe.text_encoder, of.model.pipe.tokenizer.eos_token_id
    start = of.model.pipe.tokenizer.bos_token_id
    with torch.no_grad():
        alone = [encoder(torch.tensor([[start, *c, end, *[end] * (75 - len(c))]]))[0] for c in chunks]
    found = of.encode(LONG, guided=False).embeds["prompt_embeds"]
    assert torch.allclose(found, torch.cat(alone, dim=1), atol=1e-6)


def test_break_begins_a_chunk(sd: Path) -> None:
    of = prompter(sd)

    def read(text: str) -> Any:
        return of.encode(text, guided=False).embeds["prompt_embeds"]

    both = read("a red fox BREAK snow")
    assert torch.allclose(both, torch.cat([read("a red fox"), read("snow")], dim=1), atol=1e-6)
    weighted = read("a red fox BREAK (snow:1.5)")
    assert torch.allclose(weighted, torch.cat([read("a red fox"), read("(snow:1.5)")], dim=1), atol=1e-6)


def test_pooled_is_of_the_first_chunk(sdxl: Path) -> None:
    of = prompter(sdxl)
    long = of.encode("a fox BREAK (snow:1.4)", "red").embeds
    short = of.encode("a fox", "red").embeds
    for name in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds"):
        assert torch.allclose(long[name], short[name], atol=1e-6)
    assert long["prompt_embeds"].shape == long["negative_prompt_embeds"].shape == (1, 2 * 77, 2 * kit.HIDDEN)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_saying_a_text_over_does_not_change_the_picture(family: str, request: pytest.FixtureRequest) -> None:
    """Where an empty chunk would: what makes a short negative prompt go with a long prompt."""
    of = prompter(request.getfixturevalue(family))
    once = of.encode("a red fox", "green").embeds
    empty = of.encode("a red fox BREAK", "green BREAK").embeds
    twice = {name: t.repeat(1, 2, 1) if t.ndim == 3 else t for name, t in once.items()}

    def latents(embeds: Any) -> Any:
        return of.model.pipe(
            **embeds,
            generator=torch.Generator().manual_seed(1),
            num_inference_steps=3,
            output_type="latent",
            height=64,
            width=64,
        ).images

    plain = latents(once)
    assert torch.allclose(latents(twice), plain, atol=1e-5 * float(plain.abs().max()))
    assert not torch.allclose(latents(empty), plain, atol=1e-3)


def test_prompt_and_negative_come_to_one_length(sd: Path) -> None:
    of = prompter(sd)
    lengths = {}
    for many, few in ((1, 1), (2, 1), (2, 3), (4, 2), (23, 22)):
        encoded = of.encode(" BREAK ".join(["a fox"] * many), " BREAK ".join(["red"] * few)).embeds
        assert encoded["prompt_embeds"].shape == encoded["negative_prompt_embeds"].shape
        lengths[many, few] = encoded["prompt_embeds"].shape[1] // 77
    assert lengths == {(1, 1): 1, (2, 1): 2, (2, 3): 6, (4, 2): 4, (23, 22): 23}
    short = of.encode("a fox", "red").embeds["negative_prompt_embeds"]
    assert torch.equal(of.encode("a BREAK b", "red").embeds["negative_prompt_embeds"], short.repeat(1, 2, 1))


def test_each_text_is_read_once(sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = prompter(sd)
    calls = []
    forward = of.model.pipe.text_encoder.forward
    monkeypatch.setattr(of.model.pipe.text_encoder, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    for prompt in ("a fox", "a cat", "a fox"):
        of.encode(prompt, "red")
    assert len(calls) == 3
    of.encode("a fox", "red", clip_skip=1)
    assert len(calls) == 4
    of.encode("a fox", "red", key="another adapter")
    assert len(calls) == 6


def test_what_is_kept_is_bounded(sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = prompter(sd)
    one = of.encode("a fox", guided=False).embeds["prompt_embeds"]
    monkeypatch.setattr(prompts, "CACHE", 3 * one.numel() * 4)
    for i in range(10):
        of.encode(f"fox {i}", guided=False)
        of.encode("a fox", guided=False)
    assert len(of.kept) == 3
    assert ("a fox", 0, None, None) in of.kept  # used lately


def test_words_of_several_vectors_are_all_read(sd: Path) -> None:
    model = load_model(sd, Runtime(torch.device("cpu")))
    vectors = torch.randn(3, kit.HIDDEN)
    model.pipe.load_textual_inversion({"<dog>": vectors}, token="<dog>")
    of = Prompts(model)
    with torch.no_grad():
        expected, _ = model.pipe.encode_prompt("a <dog> fox", "cpu", 1, False)
    same(of.encode("a <dog> fox", guided=False).embeds, {"prompt_embeds": expected})
    ids = model.pipe.tokenizer.convert_tokens_to_ids(["<dog>", "<dog>_1", "<dog>_2"])
    (chunk,) = prompts._chunks([[("a ", 1.0), ("<dog>", 1.3)]], model.pipe.tokenizer, model.pipe)
    assert chunk[1:] == [(token, 1.3) for token in ids]


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_t5_reads_words_and_says_so(family: str, request: pytest.FixtureRequest) -> None:
    of = prompter(request.getfixturevalue(family))
    encoded = of.encode("a (red:1.3) fox", guided=False)
    same(encoded.embeds, dict(of.encode("a red fox", guided=False).embeds))
    (note,) = encoded.notes
    assert note.startswith("weights in the prompt have no effect")


def test_t5_reads_more_where_it_is_needed_and_ends_at_512(sd3: Path) -> None:
    of = prompter(sd3)
    short, longer = of.encode("a fox", "red"), of.encode("x" * 300, "red")
    assert short.embeds["prompt_embeds"].shape[1] == 77 + 256
    assert {t.shape[1] for name, t in longer.embeds.items() if "pooled" not in name} == {77 + 512}
    assert longer.notes == ()
    (note,) = of.encode("a fox", "x" * 1000).notes
    assert note.startswith("negative_prompt is 100")
    assert note.endswith("of which this model reads the first 512")


def test_sd3_without_t5_tells_what_clip_cuts(models: Path) -> None:
    of = prompter(kit.save_sd3(models / "sd3-clip", t5=False))
    (note,) = of.encode("fox " * 100).notes
    assert note.endswith("of which this model reads the first 77")


def test_flux_has_no_clip_skip(flux: Path) -> None:
    assert prompter(flux).encode("a fox", clip_skip=1, guided=False).notes == ("clip_skip has no effect on Flux",)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3"])
def test_more_layers_than_there_are_cannot_be_left_out(family: str, request: pytest.FixtureRequest) -> None:
    with pytest.raises(InputError, match=r"clip_skip 3 is out of range: .* at most 2 fit"):
        prompter(request.getfixturevalue(family)).encode("a fox", clip_skip=3)


def test_a_weight_out_of_range_is_refused(sd: Path) -> None:
    with pytest.raises(InputError, match="a weight of 1e9"):
        prompter(sd).encode("a (red:1e9) fox")


def test_prompts_of_different_lengths_in_a_batch_are_as_each_alone(sd: Path) -> None:
    from pipelines.stable_diffusion.pipeline import Params, StableDiffusion

    painter = StableDiffusion.load(sd, Runtime(torch.device("cpu")))
    common = {"num_inference_steps": 2, "width": 64, "height": 64, "negative_prompt": "green"}
    texts = ("a red fox", LONG, "a (red:1.4) fox", "a cat BREAK snow")
    batch = [Params(prompt=text, seed=i, **common) for i, text in enumerate(texts)]
    together = [output.images[0].tensor() for output in painter.generate(batch)]
    alone = [painter.generate([params])[0].images[0].tensor() for params in batch]
    for one, other in zip(together, alone, strict=True):
        assert (one - other).abs().max() <= 1 / 255 + 1e-6  # to rounding: a level of the picture's 256
