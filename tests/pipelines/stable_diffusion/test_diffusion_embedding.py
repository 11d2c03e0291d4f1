"""Textual inversion: a word for learned vectors, in every format, and a model that knows nothing of it afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import additions_kit as kit
import diffusion_kit
import pytest
import torch

from genkit.errors import ModelError
from pipelines.stable_diffusion.additions import embedding
from pipelines.stable_diffusion.additions.applying import Additions
from pipelines.stable_diffusion.pipeline import Params

WIDTH = diffusion_kit.HIDDEN


@pytest.fixture(scope="module")
def additions(sd: Path) -> Additions:
    return Additions(kit.load(sd))


@pytest.fixture(scope="module")
def plain(sd: Path) -> torch.Tensor:
    return kit.made(Additions(kit.load(sd)))


def vectors(count: int = 1, seed: int = 0, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def by_hand(additions: Additions, before: str, rows: torch.Tensor, after: str) -> torch.Tensor:
    """The text encoder's states for words, vectors and words, [1, n, D], from its embeddings on."""
    pipe = additions.model.pipe
    table, ids = pipe.text_encoder.get_input_embeddings(), pipe.tokenizer
    begin = ids(before, add_special_tokens=False).input_ids
    end = ids(after, add_special_tokens=False).input_ids
    filler = [ids.bos_token_id, *begin, *[0] * len(rows), *end, ids.eos_token_id]
    with torch.no_grad():
        row = table(torch.tensor([filler]))
        row[0, 1 + len(begin) : 1 + len(begin) + len(rows)] = rows
        handle = table.register_forward_hook(lambda module, inputs, output: row)
        try:
            return pipe.text_encoder(torch.tensor([filler])).last_hidden_state
        finally:
            handle.remove()


def states(additions: Additions, use: Any, text: str) -> torch.Tensor:
    pipe = additions.model.pipe
    with torch.no_grad():
        return pipe.text_encoder(pipe.tokenizer(use.text(text), return_tensors="pt").input_ids).last_hidden_state


FILES = {
    "wonder.safetensors of A1111": lambda path, rows: kit.saved(path / "wonder.safetensors", {"emb_params": rows}),
    "wonder.safetensors of diffusers": lambda path, rows: kit.saved(path / "wonder.safetensors", {"<cat-toy>": rows}),
    "wonder.pt of A1111": lambda path, rows: old(path / "wonder.pt", rows),
    "wonder.bin of diffusers": lambda path, rows: old_diffusers(path / "wonder.bin", rows),
}


def old(path: Path, rows: torch.Tensor) -> Path:
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": rows}, "name": "wonder", "step": 10}, path)
    return path


def old_diffusers(path: Path, rows: torch.Tensor) -> Path:
    torch.save({"<cat-toy>": rows}, path)
    return path


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", FILES)
def test_a_word_is_its_vectors(kind: str, count: int, additions: Additions, tmp_path: Path) -> None:
    path = FILES[kind](tmp_path, vectors(count))
    expected = by_hand(additions, "a red", vectors(count), "in the snow")
    with additions.applied(Params(prompt="a", embedding=[str(path)])) as use:
        assert torch.allclose(states(additions, use, "a red wonder in the snow"), expected, atol=1e-5)
        assert torch.allclose(states(additions, use, "a red WONDER in the snow"), expected, atol=1e-5)
        if "diffusers" in kind:
            assert torch.allclose(states(additions, use, "a red <cat-toy> in the snow"), expected, atol=1e-5)


def test_one_vector_without_a_list(additions: Additions, tmp_path: Path) -> None:
    path = kit.saved(tmp_path / "wonder.safetensors", {"<cat-toy>": vectors()[0]})
    with additions.applied(Params(prompt="a", embedding=[str(path)])) as use:
        found = states(additions, use, "a wonder")
    assert torch.allclose(found, by_hand(additions, "a", vectors(), ""), atol=1e-5)


def test_the_folder_of_a_training(additions: Additions, tmp_path: Path) -> None:
    """Its name is nobody's word."""
    kit.saved(tmp_path / "learned_embeds.safetensors", {"<cat-toy>": vectors()})
    kit.saved(tmp_path / "cat-toy.safetensors", {"emb_params": vectors()})
    with additions.applied(Params(prompt="a", embedding=[str(tmp_path)])) as use:
        assert set(use.spelling) == {"<cat-toy>"}


def test_a_prompt_without_the_word_is_the_same_to_the_bit(
    additions: Additions, plain: torch.Tensor, tmp_path: Path
) -> None:
    path = kit.saved(tmp_path / "wonder.safetensors", {"emb_params": vectors(3)})
    pipe = additions.model.pipe
    before = pipe.tokenizer, pipe.text_encoder.get_input_embeddings()
    assert torch.equal(kit.made(additions, embedding=str(path)), plain)
    assert not torch.allclose(kit.made(additions, "a red wonder", embedding=str(path)), plain, atol=0.02)
    with pytest.raises(KeyboardInterrupt), additions.applied(Params(prompt="a", embedding=[str(path)])):
        raise KeyboardInterrupt
    assert (pipe.tokenizer, pipe.text_encoder.get_input_embeddings()) == before
    assert torch.equal(kit.made(additions), plain)


def test_two_words_of_one_beginning(additions: Additions, tmp_path: Path) -> None:
    short = kit.saved(tmp_path / "cat.safetensors", {"emb_params": vectors(1, 1)})  # a word of the vocabulary, too
    long = kit.saved(tmp_path / "cat-toy.safetensors", {"emb_params": vectors(2, 2)})
    with additions.applied(Params(prompt="a", embedding=[str(short), str(long)])) as use:
        assert torch.allclose(
            states(additions, use, "a cat-toy"), by_hand(additions, "a", vectors(2, 2), ""), atol=1e-5
        )
        assert torch.allclose(states(additions, use, "a cat"), by_hand(additions, "a", vectors(1, 1), ""), atol=1e-5)
        assert use.text("a category of cats") == "a category of cats"
        assert use.text("(cat:1.2), [CAT]") == "(<genkit-0-0>:1.2), [<genkit-0-0>]"


def test_a_name_with_brackets_may_be_escaped() -> None:
    assert embedding.spelled(r"a look \(v2\), look (v2)", {"look (v2)": "X"}) == "a X, X"


def test_sdxl_has_vectors_for_both_encoders(sdxl: Path, tmp_path: Path) -> None:
    large = Additions(kit.load(sdxl))
    plain = kit.made(large)
    path = kit.saved(tmp_path / "wonder.safetensors", {"clip_l": vectors(2), "clip_g": vectors(2, 1)})
    with large.applied(Params(prompt="a", embedding=[str(path)])) as use:
        for name, rows in (("", vectors(2)), ("_2", vectors(2, 1))):
            tokenizer, encoder = getattr(large.model.pipe, f"tokenizer{name}"), f"text_encoder{name}"
            ids = tokenizer(use.text("wonder"), add_special_tokens=False).input_ids
            table = getattr(large.model.pipe, encoder).get_input_embeddings()
            assert torch.equal(table(torch.tensor(ids)), rows)
    assert torch.equal(kit.made(large, embedding=str(path)), plain)
    assert not torch.allclose(kit.made(large, "a red wonder", embedding=str(path)), plain, atol=0.01)
    assert torch.equal(kit.made(large), plain)


def test_the_end_of_a_prompt_is_found_behind_added_tokens(sdxl: Path, tmp_path: Path) -> None:
    """CLIP of old configurations takes the largest token for the end."""
    path = kit.saved(tmp_path / "wonder.safetensors", {"clip_l": vectors(), "clip_g": vectors()})
    pooled = []
    for old_one in (False, True):
        large = Additions(kit.load(sdxl))
        parts = [part for part in large.model.pipe.text_encoder_2.modules() if hasattr(part, "eos_token_id")]
        assert parts
        for part in parts:
            part.eos_token_id = 2 if old_one else part.eos_token_id
        with torch.no_grad(), large.applied(Params(prompt="a", embedding=[str(path)])) as use:
            ids = large.model.pipe.tokenizer_2(use.text("a wonder in the snow"), return_tensors="pt").input_ids
            pooled.append(large.model.pipe.text_encoder_2(ids).text_embeds)
        assert not old_one or all(part.eos_token_id == 2 for part in parts)
    assert torch.equal(*pooled)


def refusal(additions: Additions, *refs: object) -> str:
    with (
        pytest.raises(ModelError) as caught,
        additions.applied(Params(prompt="a", embedding=[str(ref) for ref in refs])),
    ):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit(additions: Additions, sdxl: Path, sd: Path, tmp_path: Path) -> None:
    wide = kit.saved(tmp_path / "wide.safetensors", {"emb_params": vectors(1, width=768)})
    assert "wide.safetensors is for another model: its vectors have 768, those of Stable Diffusion 1 32" in refusal(
        additions, wide
    )
    small = kit.saved(tmp_path / "small.safetensors", {"emb_params": vectors()})
    message = refusal(Additions(kit.load(sdxl)), small)
    assert "those of Stable Diffusion XL 32 and 32 (clip_l and clip_g in one file)" in message
    broken = kit.saved(tmp_path / "nan.safetensors", {"emb_params": vectors() * float("nan")})
    assert "NaN" in refusal(additions, broken)
    unet = sd / "unet" / "diffusion_pytorch_model.safetensors"
    assert "is no textual inversion: it looks like a diffusers U-Net" in refusal(additions, unet)
    assert "does not exist" in refusal(additions, tmp_path / "none.pt")
    many = kit.saved(tmp_path / "many.safetensors", {"emb_params": vectors(76)})
    assert "1 to 75 vectors" in refusal(additions, many)
    torch.save({"string_to_param": {"*": Path("x")}}, tmp_path / "code.pt")
    assert "could run any code" in refusal(additions, tmp_path / "code.pt")
    (tmp_path / "again").mkdir()
    same = kit.saved(tmp_path / "again" / "small.safetensors", {"emb_params": vectors(1, 3)})
    assert "two embeddings have the name 'small'" in refusal(additions, small, same)
