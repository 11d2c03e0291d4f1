"""The `clip` training: its tokenizer, its loss, where a text's embedding is taken, exact resuming, what it exports."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import diffusion_training_kit as kit
import pytest
import torch
from torch.nn import functional as F

from genkit.errors import InputError
from pipelines.stable_diffusion.train import tokenizer as tokens
from pipelines.stable_diffusion.train.clip import CLIPConfig, contrastive, vary

TEXTS = [f"{colour} {thing}, {hand} style" for colour in ("red", "green", "blue") for thing in ("apple", "fox")
         for hand in ("noto", "blob")]  # fmt: skip
STRANGE = ("Ünïcode 漢字 🦊", "don't \x00 \ud7ff!", "x" * 200, "", " \n ", "<|endoftext|> in the middle", "RED APPLE")


@pytest.fixture
def data(tmp_path: Path) -> str:
    return f"data=[{kit.captioned(tmp_path / 'noto')}, {kit.captioned(tmp_path / 'blob', shift=3)}]"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokens.learn(TEXTS, tokens.SMALLEST + 60, 16)


# ---------------------------------------------------------------------------------------------------------- tokenizer


def test_words_of_the_captions_are_single_tokens_and_ids_are_laid_out_as_clips(tokenizer: Any) -> None:
    assert tokenizer.tokenize("Red  APPLE, noto style") == ["red</w>", "apple</w>", ",</w>", "noto</w>", "style</w>"]
    count = len(tokenizer)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (count - 2, count - 1, count - 1)
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(count))
    assert all(len(token) == 1 for token, number in vocabulary.items() if number < 256)
    assert all(token.endswith("</w>") for token, number in vocabulary.items() if 256 <= number < 512)


def test_any_text_is_encoded_and_comes_back(tokenizer: Any) -> None:
    unknown = tokenizer.eos_token_id
    for text in ("Ünïcode 漢字 🦊", "snow & fire #1", "naïve café", "\x00\x7f"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert ids
        assert unknown not in ids, "a byte was missing from the vocabulary"
        back = tokenizer.decode(ids)
        assert back.replace(" ", "") == text.lower().replace(" ", "")


@pytest.mark.parametrize("text", STRANGE)
def test_a_text_begins_ends_and_is_padded_as_clip_wants_it(text: str, tokenizer: Any) -> None:
    ids = tokenizer(text, padding="max_length", truncation=True).input_ids
    assert len(ids) == tokenizer.model_max_length == 16
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id


def test_size_is_a_limit_and_learning_is_repeatable(tokenizer: Any) -> None:
    assert len(tokenizer) <= tokens.SMALLEST + 60
    assert len(tokens.learn(TEXTS, tokens.SMALLEST, 16)) == tokens.SMALLEST
    few = tokens.learn(TEXTS, 5000, 16)
    assert len(few) < 700, "there are no more pairs than that"
    assert tokens.merges(tokens.learn(TEXTS[::-1], 5000, 16)) == tokens.merges(few), "the order does not matter"
    assert tokens.merges(tokens.build(tokens.merges(few), 16)) == tokens.merges(few)


def test_it_is_saved_as_transformers_reads_it(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    tokens.save(tokenizer, tmp_path)
    assert (tmp_path / "merges.txt").read_text("utf-8").startswith("#version")
    assert json.loads((tmp_path / "vocab.json").read_text("utf-8")) == tokenizer.get_vocab()
    wanted = tokenizer([*TEXTS, *STRANGE], padding="max_length", truncation=True).input_ids

    def read() -> list[list[int]]:
        found = CLIPTokenizer.from_pretrained(tmp_path)
        assert found.model_max_length == 16
        return found([*TEXTS, *STRANGE], padding="max_length", truncation=True).input_ids

    assert read() == wanted
    (tmp_path / "tokenizer.json").unlink()
    assert read() == wanted, "from vocab.json and merges.txt alone"


# --------------------------------------------------------------------------------------------------------- arithmetic


def test_the_loss_is_that_of_a_loop_by_hand() -> None:
    torch.manual_seed(0)
    p, t = (F.normalize(torch.randn(5, 7, dtype=torch.float64), dim=1) for _ in range(2))
    scale = 9.0
    total = 0.0
    for i in range(5):
        own = scale * float(p[i] @ t[i])
        total += math.log(sum(math.exp(scale * float(p[i] @ t[j])) for j in range(5))) - own
        total += math.log(sum(math.exp(scale * float(p[j] @ t[i])) for j in range(5))) - own
    assert float(contrastive(p, t, torch.tensor(scale))) == pytest.approx(total / 10, rel=1e-6)


def test_the_loss_of_no_knowledge_is_the_logarithm_of_the_batch() -> None:
    same = F.normalize(torch.ones(8, 4), dim=1)
    assert float(contrastive(same, same, torch.tensor(30.0))) == pytest.approx(math.log(8), rel=1e-5)


def test_varied_pictures_stay_pictures_on_white() -> None:
    torch.manual_seed(0)
    white = torch.ones(6, 3, 16, 16)
    torch.testing.assert_close(vary(white, 0.3, 0.0), white)
    ink = white.clone()
    ink[:, :, 4:12, 4:12] = -1
    assert torch.allclose(vary(ink, 0.0, 0.0), ink, atol=1e-5), "nothing is asked, nothing is done"
    area = (1 - vary(ink, 0.3, 0.0)).sum((1, 2, 3)) / (1 - ink).sum((1, 2, 3))
    assert area.min() > 0.7**2 - 0.06, "at 16 px edges fall between pixels"
    assert area.max() < 1.3**2 + 0.06
    assert area.std() > 0.05
    varied = vary(torch.rand(6, 3, 16, 16) * 2 - 1, 0.3, 0.5)
    assert float(varied.min()) >= -1
    assert float(varied.max()) <= 1


# ----------------------------------------------------------------------------------------------------------- training


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(data: str, tmp_path: Path) -> None:
    whole, parts = kit.interrupted_equals_whole("clip", tmp_path, data, "export=last")
    assert tokens.merges(whole.task.tokenizer) == tokens.merges(parts.task.tokenizer)
    for name in ("text_encoder/model.safetensors", "image_encoder/model.safetensors", "tokenizer/vocab.json"):
        one, two = (tmp_path / out / "export" / name for out in ("whole", "parts"))
        assert one.read_bytes() == two.read_bytes()


def test_a_resumed_run_keeps_the_tokenizer_it_was_begun_with(data: str, tmp_path: Path) -> None:
    run = kit.trainer("clip", tmp_path / "run", data)
    other = tokens.learn(["quite other words"] * 3, 600, 32)
    before = run.task.captions
    run.task.load_state_dict({"merges": [list(pair) for pair in tokens.merges(other)]})
    assert tokens.merges(run.task.tokenizer) == tokens.merges(other)
    assert not torch.equal(run.task.captions, before), "the captions are read by it"
    assert run.task.state_dict()["merges"] == [list(pair) for pair in tokens.merges(other)]


def test_captions_are_found_for_pictures_it_learned(data: str, tmp_path: Path) -> None:
    more = ("held_out=0", "steps=60", "batch_size=16", "rate=0.01", "ema=null", "bare=0", "validate_every=null")
    run = kit.trainer("clip", tmp_path / "run", data, *more, "vocabulary=700", "load_size=32")
    with torch.no_grad():
        before = run.task.validate()
    assert run.train().finished
    for module in run.task.modules.values():
        module.eval()
    with torch.no_grad():
        after = run.task.validate()
    assert after["loss"] < 0.8 * before["loss"]
    assert after["top5"] > before["top5"]
    assert 0 < after["reciprocal"] <= 1


def test_the_scale_is_learned_and_never_over_100(data: str, tmp_path: Path) -> None:
    run = kit.trainer("clip", tmp_path / "run", data, "rate=1.0", "steps=3", "validate_every=null")
    with torch.no_grad():
        run.task.scale.log.fill_(math.log(99.999))
    run.train()
    assert float(run.task.scale().detach()) <= 100.001
    assert run.task.scale.log.requires_grad


def test_the_embedding_of_a_text_is_taken_at_its_first_end(data: str, tmp_path: Path) -> None:
    """Also where the vocabulary has tokens with higher numbers, as after textual inversion."""
    task = kit.trainer("clip", tmp_path / "run", data).task
    text = task.text.eval()
    end = task.tokenizer.eos_token_id
    assert text.config.eos_token_id == end != 2
    ids = task._ids(["red disc, noto style", "blue disc"])
    with torch.no_grad():
        found = text(input_ids=ids)
        text.resize_token_embeddings(end + 2)
        added = ids.clone()
        added[:, 1] = end + 1
        other = text(input_ids=added)
        for row in range(2):
            place = ids[row].tolist().index(end)
            assert place < ids.shape[1] - 1, "it is padded"
            assert torch.equal(found.pooler_output[row], found.last_hidden_state[row, place])
            assert torch.equal(other.pooler_output[row], other.last_hidden_state[row, place])


def test_padding_changes_no_embedding(data: str, tmp_path: Path) -> None:
    """What `_texts` cuts off would have changed nothing."""
    task = kit.trainer("clip", tmp_path / "run", data).task
    task.text.eval()
    with torch.no_grad():
        short = task._texts(task.captions)
        whole = F.normalize(task.text(input_ids=task.captions).pooler_output, dim=1)
        longest = task.tokenizer(["disc " * 100], truncation=True, max_length=32, return_tensors="pt").input_ids
        full = task._texts(longest)
    torch.testing.assert_close(short, whole)
    assert full.shape == (1, 16)


def test_fewer_patches_are_seen_in_training_only(data: str, tmp_path: Path) -> None:
    task = kit.trainer("clip", tmp_path / "run", data, "seen=0.5", "patch=8").task
    seen: list[int] = []
    task.image.vision_model.encoder.register_forward_hook(lambda m, a, k, out: seen.append(k["inputs_embeds"].shape[1]),
                                                          with_kwargs=True)  # fmt: skip
    x = task.data.show(task.data.pairs[:2])
    with torch.no_grad():
        task.image.train()
        first, second = task._pictures(x), task._pictures(x)
        task.image.eval()
        third, fourth = task._pictures(x), task._pictures(x)
    assert seen == [9, 9, 17, 17]
    assert not torch.equal(first, second)
    assert torch.equal(third, fourth)


def test_plain_transformers_loads_what_was_exported(
    data: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image
    from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

    run = kit.trainer("clip", tmp_path / "run", data, "ema=null", "export=last", "rate=0.01")
    capfd.readouterr()
    folder = run.train().exported
    assert capfd.readouterr() == ("", ""), "a bar of somebody else's"
    assert sorted(path.name for path in folder.iterdir()) == [
        "feature_extractor", "image_encoder", "text_encoder", "tokenizer"
    ]  # fmt: skip
    for module in run.task.modules.values():
        module.eval()
    pairs = run.task.data.pairs
    with torch.no_grad():
        pictures, texts = run.task.embed(pairs)
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        reader = CLIPTextModel.from_pretrained(folder / "text_encoder", use_safetensors=True)
        eye = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder", use_safetensors=True)
        assert reader.dtype == eye.dtype == torch.float16
        captions = [pair.caption for pair in pairs]
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        found = F.normalize(reader.float()(input_ids=ids).pooler_output, dim=1)
        torch.testing.assert_close(found, texts, atol=5e-3, rtol=0)
        processor = CLIPImageProcessor.from_pretrained(folder / "feature_extractor")
        shown = [Image.open(pair.path) for pair in pairs]
        x = processor(images=shown, return_tensors="pt").pixel_values
        torch.testing.assert_close(x, run.task.data.show(pairs), atol=1e-5, rtol=0)
        seen = F.normalize(eye.float()(pixel_values=x).image_embeds, dim=1)
        torch.testing.assert_close(seen, pictures, atol=5e-3, rtol=0)


def test_the_shipped_sizes_are_kept_to() -> None:
    from pipelines.stable_diffusion.train.clip import _image_encoder, _text_encoder

    config = CLIPConfig.parse({"data": ["."]})
    blank = tokens.build([], config.length)
    text, image = _text_encoder(config, blank), _image_encoder(config)
    rows = config.vocabulary - len(blank)
    assert sum(p.numel() for p in text.parameters()) + rows * config.width <= 1_600_000
    assert sum(p.numel() for p in image.parameters()) <= 900_000
    assert image.config.projection_dim == text.config.hidden_size == 192


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("patch=12", "patch 12 does not divide size 32"),
        ("text_heads=3", "text_heads 3 does not divide width 16"),
        ("image_heads=5", "image_heads 5 does not divide image_width 16"),
        ("vocabulary=400", "vocabulary"),
        ("held_out=1000", "held out"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        kit.trainer("clip", tmp_path / "run", f"data={kit.captioned(tmp_path / 'one')}", settings)
    assert words in str(caught.value)
