"""Captioned folders: templates, which pictures are held out, what is left out by name, and bad lines of metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusion_training_kit as kit
import pytest
import torch
from PIL import Image

from genkit.errors import InputError, MediaError
from genkit.training.data import Draw
from genkit.training.task import Setup
from pipelines.stable_diffusion.train.captioned import Captioned, CaptionedConfig, find_pairs, held_pairs

STYLED = "{text}, {folder} style"


@pytest.fixture
def hands(tmp_path: Path) -> list[Path]:
    """Two folders of 8 pictures with the same names."""
    return [kit.captioned(tmp_path / "noto"), kit.captioned(tmp_path / "blob", shift=3)]


def config(folders: list[Path], **changes: Any) -> CaptionedConfig:
    return CaptionedConfig.parse({"data": [str(folder) for folder in folders], "size": 32} | changes)


def setup(said: list[str] | None = None, *, strict: bool = False) -> Setup:
    return Setup(torch.device("cpu"), strict=strict, say=said.append if said is not None else lambda text: None)


def rewrite(folder: Path, *lines: Any) -> None:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "metadata.jsonl").write_text(text, "utf-8")


def test_a_caption_is_made_by_the_template(hands: list[Path]) -> None:
    pairs = find_pairs(config(hands, caption=STYLED), setup())
    assert len(pairs) == 16
    assert {(pair.caption, pair.text, pair.folder) for pair in pairs if pair.path.name == "00.png"} == {
        ("red disc, noto style", "red disc", "noto"),
        ("red disc, blob style", "red disc", "blob"),
    }


def test_braces_in_a_text_are_letters(hands: list[Path]) -> None:
    rewrite(hands[0], {"file_name": "00.png", "text": " {folder} of {x} "})
    (pair, *_) = find_pairs(config(hands[:1], caption="a {text}"), setup())
    assert (pair.text, pair.caption) == ("{folder} of {x}", "a {folder} of {x}")


def test_held_out_pairs_depend_on_names_alone_and_leave_the_other_hand(hands: list[Path]) -> None:
    pairs = find_pairs(config(hands), setup())
    held = held_pairs(pairs, 5)
    assert len({pair.path.name for pair in held}) == 5
    assert [pair.path for pair in held] == [pair.path for pair in held_pairs(find_pairs(config(hands), setup()), 5)]
    assert held_pairs(pairs, 3) == held[:3], "fewer are the first of more"
    data = Captioned(config(hands, held_out=5), setup())
    trained = {(pair.path.name, pair.folder) for pair in data.pairs}
    assert len(data) == len(trained) == 11
    for pair in held:
        other = "blob" if pair.folder == "noto" else "noto"
        assert (pair.path.name, pair.folder) not in trained
        assert (pair.path.name, other) in trained
    assert data.held == held


def test_moving_the_folders_holds_the_same_names_out(hands: list[Path], tmp_path: Path) -> None:
    moved = [kit.captioned(tmp_path / "elsewhere" / name) for name in ("noto", "blob")]
    one, two = (held_pairs(find_pairs(config(folders), setup()), 4) for folders in (hands, moved))
    assert [(pair.path.name, pair.folder) for pair in one] == [(pair.path.name, pair.folder) for pair in two]


def test_one_folder_alone_holds_its_own_out_and_a_name_of_one_folder_is_never_held(hands: list[Path]) -> None:
    alone = find_pairs(config(hands[:1]), setup())
    assert len(held_pairs(alone, 3)) == 3
    rewrite(hands[1], {"file_name": "00.png", "text": "red disc"})
    both = find_pairs(config(hands), setup())
    assert [pair.path.name for pair in held_pairs(both, 100)] == ["00.png"]


def test_items_are_pictures_with_their_pairs_number(hands: list[Path]) -> None:
    data = Captioned(config(hands, held_out=4, caption=STYLED), setup(), load_size=36, crop="random")
    item = data[Draw(7, 3, 1)]
    assert item["picture"].shape == (3, 32, 32)
    assert item["picture"].dtype == torch.float32
    assert int(item["index"]) == 7
    assert torch.equal(data[Draw(7, 3, 1)]["picture"], item["picture"]), "an item is a function of its draw"
    assert -1 <= float(item["picture"].min()) < -0.3
    assert float(item["picture"].max()) == 1
    plain = Captioned(config(hands), setup(), crop="center")
    assert torch.equal(plain[5]["picture"], plain.show(plain.pairs[5:6])[0]), "item and pair are of the same number"


def test_what_lacks_its_half_is_named_and_left_out(hands: list[Path]) -> None:
    said: list[str] = []
    (hands[0] / "00.png").unlink()
    Image.new("RGB", (32, 32)).save(hands[1] / "lonely.png")
    (hands[1] / "10.png").write_bytes(b"no picture")
    data = Captioned(config(hands), setup(said))
    assert len(data) == 14
    told = "\n".join(said)
    assert "names '00.png', which is not there" in told
    assert "1 picture(s) without a caption, as lonely.png" in told
    assert "10.png" in told
    assert "14 captioned pictures to learn from, 0 held out" in told


def test_strict_refuses_them(hands: list[Path]) -> None:
    (hands[1] / "10.png").write_bytes(b"no picture")
    with pytest.raises(MediaError, match=r"10\.png"):
        Captioned(config(hands), setup(strict=True))
    (hands[0] / "00.png").unlink()
    with pytest.raises(InputError, match=r"names '00\.png', which is not there"):
        Captioned(config(hands), setup(strict=True))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: is not"),
        ("[1, 2]", "line 2: is not"),
        ("7", "line 2: is not"),
        ('{"file_name": "00.png"}', "line 2: is not"),
        ("[" * 100_000, "line 2: is not"),
        ('{"file_name": "00.png", "text": 3}', "must be words"),
        ('{"file_name": "00.png", "text": "  "}', "must be words"),
        ('{"file_name": "", "text": "x"}', "must be words"),
        ('{"file_name": "../noto/00.png", "text": "x"}', "points out of the folder"),
        ('{"file_name": "/etc/passwd", "text": "x"}', "points out of the folder"),
    ],
    ids=range(10),
)
def test_a_bad_line_is_named(line: str, words: str, hands: list[Path]) -> None:
    rewrite(hands[0], {"file_name": "00.png", "text": "x"}, line)
    with pytest.raises(InputError) as caught:
        find_pairs(config(hands), setup())
    assert "metadata.jsonl, line 2" in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_lines_are_no_lines(hands: list[Path]) -> None:
    rewrite(hands[0], "", {"file_name": "00.png", "text": "x"}, "   ", "")
    assert len(find_pairs(config(hands[:1]), setup())) == 1


def test_nothing_to_learn_from_is_refused(hands: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="all 8 pictures are held out"):
        Captioned(config(hands[:1], held_out=1000), setup())
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match=r"has no metadata\.jsonl; put one there"):
        find_pairs(config([tmp_path / "bare"]), setup())
    rewrite(hands[0], {"file_name": "gone.png", "text": "x"})
    with pytest.raises(InputError, match=r"'gone\.png', which is not there; no picture with a caption is left"):
        find_pairs(config(hands[:1]), setup())
