"""Two looks to learn from: what is drawn, what pairs, what is held out, and bad data met before anything is trained."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import learning_kit as kit
import numpy as np
import pytest
import torch
from PIL import Image

from genkit.errors import InputError, MediaError
from genkit.training import loading
from genkit.training.data import Draw, Shuffled, fit, open_image
from genkit.training.task import Setup
from pipelines.image_translation.train.pictures import (
    Cropping,
    Looks,
    Paired,
    Pairs,
    Unpaired,
    held_names,
    paired_folders,
    two_folders,
    whole,
)


def setup(said: list[str] | None = None, *, strict: bool = False) -> Setup:
    return Setup(torch.device("cpu"), strict=strict, say=(said if said is not None else []).append)


def cropping(**values: Any) -> Cropping:
    return Cropping(**{"size": 32, "load_size": 36, **values})


def looks(*folders: Path) -> Looks:
    return Looks(a=[folders[0]], b=[folders[1]])


def pairs(*folders: Path) -> Pairs:
    return Pairs(a=[folders[0]], b=[folders[1]])


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return kit.blobs(tmp_path / "a", 5)


@pytest.fixture
def b(tmp_path: Path) -> Path:
    """The negatives of A: its pairs."""
    return kit.blobs(tmp_path / "b", 5, inverted=True)


# ------------------------------------------------------------------------------------------------------- what is drawn


def test_unpaired_pictures_are_drawn_each_by_itself(a: Path, b: Path) -> None:
    kit.blobs(b, 4, first=5, inverted=True)
    data = Unpaired(*two_folders(looks(a, b), cropping(), setup())[:2])
    assert (len(data.a), len(data.b), len(data)) == (5, 9, 9)
    item = data[Draw(3, 0, 7)]
    assert item["a"].shape == item["b"].shape == (3, 32, 32)
    assert item["a"].min() >= -1
    assert torch.equal(pickle.loads(pickle.dumps(data))[Draw(3, 0, 7)]["b"], item["b"])
    assert not torch.equal(item["a"], data[Draw(8, 0, 7)]["a"])  # the same picture again, cropped anew
    # A comes in turn, B at random: over epochs every picture of B meets the first of A.
    partners = {data[Draw(0, epoch, 7)]["b"].mean().item() for epoch in range(60)}
    assert len(partners) > 9


@pytest.mark.parametrize("resize", ["square", "cover"])
def test_both_halves_of_a_pair_are_cropped_and_mirrored_alike(a: Path, b: Path, resize: Any) -> None:
    kit.blobs(a, 2, side=60, seed=3, first=5)
    kit.blobs(b, 2, side=60, seed=3, first=5, inverted=True)
    data = Paired(*paired_folders(pairs(a, b), cropping(resize=resize), setup())[:2])
    assert len(data) == 7
    draws = [draw for position in range(12) for draw in Shuffled(7, 2, 0).batch(position)]
    for draw in draws:
        item = data[draw]
        torch.testing.assert_close(item["a"], -item["b"], atol=0.02, rtol=0)  # B is the negative, place for place
    assert len({data[draw]["a"].numpy().tobytes() for draw in draws}) > 15


def test_pictures_side_by_side_are_pairs(tmp_path: Path, a: Path, b: Path) -> None:
    (tmp_path / "ab").mkdir()
    for i in range(5):
        halves = [np.array(Image.open(folder / f"{i:03}.png")) for folder in (a, b)]
        Image.fromarray(np.concatenate(halves, 1)).save(tmp_path / f"ab/{i:03}.png")
    joined = Paired(*paired_folders(Pairs(ab=[tmp_path / "ab"]), cropping(), setup())[:2])
    apart = Paired(*paired_folders(pairs(a, b), cropping(), setup())[:2])
    for draw in (Draw(0), Draw(4, 2, 1)):
        for look in "ab":
            assert torch.equal(joined[draw][look], apart[draw][look])
    again = pickle.loads(pickle.dumps(joined))  # a reading process can take it along
    assert torch.equal(again[Draw(1)]["b"], joined[Draw(1)]["b"])


def test_pictures_are_squashed_as_published_or_keep_their_ratio(tmp_path: Path) -> None:
    folder = tmp_path / "wide"
    folder.mkdir()
    Image.fromarray(np.tile(np.arange(120, dtype=np.uint8)[None, :, None], (40, 1, 3))).save(folder / "x.png")
    kit.blobs(tmp_path / "b", 1)
    square, cover = (
        two_folders(looks(folder, tmp_path / "b"), cropping(resize=resize), setup())[0]
        for resize in ("square", "cover")
    )
    assert (square._loaded(0).shape, cover._loaded(0).shape) == ((3, 36, 36), (3, 36, 108))
    # Bicubic as Pillow does it, which the authors used: antialiased when it reduces.
    reference = Image.open(folder / "x.png").resize((36, 36), Image.Resampling.BICUBIC)
    difference = square._loaded(0).int() - torch.from_numpy(np.array(reference)).permute(2, 0, 1).int()
    assert difference.abs().max() <= 1
    shown = whole(cover, cover.paths)
    assert shown.shape == (1, 3, 32, 32)
    middle = fit(open_image(folder / "x.png"), 32)[:, :, 32:64].float() / 127.5 - 1
    torch.testing.assert_close(shown[0], middle)


# --------------------------------------------------------------------------------------------------------- holding out


def test_what_is_held_out_depends_on_nothing_but_names(a: Path, b: Path) -> None:
    names = [f"{i:03}" for i in range(5)]
    wanted = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:2]
    assert held_names([*names, *names], 2) == held_names(reversed(names), 2) == set(wanted)
    for found in (two_folders(looks(a, b), cropping(held_out=2), setup()),
                  paired_folders(pairs(b, a), cropping(held_out=2), setup())):  # fmt: skip
        for pictures, held in (found[:1] + found[2:3], found[1:2] + found[3:]):
            assert {path.stem for path in held} == set(wanted)
            assert {path.stem for path in pictures.paths} == set(names) - set(wanted)


@pytest.mark.parametrize("task", [two_folders, paired_folders])
def test_holding_everything_out_is_refused(a: Path, b: Path, task: Any) -> None:
    data = looks(a, b) if task is two_folders else pairs(a, b)
    with pytest.raises(InputError, match=r"a: all 5 pictures are held out; lower held_out or give more pictures"):
        task(data, cropping(held_out=9), setup())


# ------------------------------------------------------------------------------------------------------------ bad data


def test_the_same_pictures_as_a_and_as_b_are_refused(a: Path) -> None:
    with pytest.raises(InputError, match=r"share 5 file\(s\), as 000.png; name two folders"):
        two_folders(looks(a, a), cropping(), setup())
    kit.blobs(a / "below", 2)
    with pytest.raises(InputError, match=r"share 2 file\(s\)"):
        two_folders(looks(a, a / "below"), cropping(), setup())


@pytest.mark.parametrize("task", [two_folders, paired_folders])
def test_empty_folders_and_unreadable_files(a: Path, b: Path, tmp_path: Path, task: Any) -> None:
    make = looks if task is two_folders else pairs
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no files ending in"):
        task(make(tmp_path / "empty", b), cropping(), setup())
    (b / "001.png").write_bytes((b / "001.png").read_bytes()[:60])
    said: list[str] = []
    found = task(make(a, b), cropping(), setup(said))
    assert len(found[1]) == 4
    assert any("001.png" in line for line in said)
    assert "left out 1 unreadable file(s) of 5" in said
    if task is paired_folders:
        assert len(found[0]) == 4
        assert any("a/001.png: no picture of that name in" in line for line in said)
    with pytest.raises(MediaError, match=r"001\.png.*\(1 such file\(s\); repair or remove"):
        task(make(a, b), cropping(), setup(strict=True))


def test_pairs_that_do_not_match_are_named_counted_and_left_out(a: Path, b: Path) -> None:
    kit.blobs(a, 1, first=90)
    kit.blobs(b, 2, first=95)
    Image.new("RGB", (80, 40)).save(b / "004.png")
    said: list[str] = []
    data = Paired(*paired_folders(pairs(a, b), cropping(), setup(said))[:2])
    assert [path.stem for path in data.a.paths] == [path.stem for path in data.b.paths] == ["000", "001", "002", "003"]
    assert sum("no picture of that name" in line for line in said) == 3
    assert any("a/004.png: 40x40 px, but its pair is 80x40" in line for line in said)
    assert said[-1] == "left out 4 picture(s) that do not pair; 5 names are in both folders"
    with pytest.raises(InputError, match=r"090\.png: no picture of that name in .*b \(4 such picture\(s\); repair"):
        paired_folders(pairs(a, b), cropping(), setup(strict=True))


def test_pairs_match_below_their_folders_whatever_their_suffix(tmp_path: Path) -> None:
    for folder, suffix in (("a", "png"), ("b", "jpg")):
        for part in ("train", "more"):
            (tmp_path / folder / part).mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(tmp_path / folder / part / f"0.{suffix}")
    data = Paired(*paired_folders(pairs(tmp_path / "a", tmp_path / "b"), cropping(), setup())[:2])
    assert len(data) == 2
    assert [path.parent.name for path in data.a.paths] == [path.parent.name for path in data.b.paths]
    Image.new("RGB", (40, 40)).save(tmp_path / "a/train/0.webp")
    with pytest.raises(InputError, match=r"0\.(webp|png) have the same name; pairs need names of their own"):
        paired_folders(pairs(tmp_path / "a", tmp_path / "b"), cropping(), setup())


def test_nothing_that_pairs_is_refused(tmp_path: Path, a: Path) -> None:
    other = kit.blobs(tmp_path / "other", 3, first=50)
    with pytest.raises(InputError, match=r"a and .*other have no name in common"):
        paired_folders(pairs(a, other), cropping(), setup())
    wide = tmp_path / "wide"
    wide.mkdir()
    Image.new("RGB", (80, 40)).save(wide / "000.png")
    with pytest.raises(InputError, match=r"no picture has the ratio of its pair; .*000\.png: 40x40 px, but"):
        paired_folders(pairs(a, wide), cropping(), setup())


@pytest.mark.parametrize("names", [(), ("a",), ("a", "ab"), ("a", "b", "ab")])
def test_pairs_are_given_in_one_way(a: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"give data\.a and data\.b, whose names pair them, or data\.ab"):
        paired_folders(Pairs(**{name: [a] for name in names}), cropping(), setup())


def test_pictures_smaller_than_the_crop_are_enlarged_and_counted(tmp_path: Path, a: Path, b: Path) -> None:
    kit.blobs(a, 2, side=20, first=7)
    said: list[str] = []
    data = Unpaired(*two_folders(looks(a, b), cropping(), setup(said))[:2])
    assert said == [f"{a}: 2 picture(s) of 7 smaller than the crop of 32 px are enlarged"]
    assert data[Draw(5)]["a"].shape == (3, 32, 32)
    with pytest.raises(InputError, match=r"2 picture\(s\) of 7 smaller than the crop of 32 px, as 007\.png; lower"):
        two_folders(looks(a, b), cropping(), setup(strict=True))


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("cyclegan", ("size=36", "halvings=3"), "size 36 does not fit halvings 3: give a multiple of 8 from 32 on"),
        ("cyclegan", ("size=32", "halvings=4"), "give a multiple of 16 from 64 on"),
        ("cyclegan", ("discriminator_layers=5",), "size 32 is too small for 5 discriminator_layers"),
        ("pix2pix", ("downs=6",), "size 32 does not fit downs 6: a U-Net needs a multiple of 64"),
        ("pix2pix", ("residual=true",), "residual is for `generator: resnet`"),
        ("cut", ("places=[0,99]",), r"places \[0, 99\]: this generator has the places 0 to"),
        ("cut", ("places=[-1]",), r"places \[-1\]: this generator has"),
    ],
)
def test_settings_that_do_not_go_together(
    tmp_path: Path, a: Path, b: Path, recipe: str, settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        kit.trainer(recipe, tmp_path / "run", f"data.a={a}", f"data.b={b}", *settings)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------------------------- the command line


def test_folders_given_on_the_command_line_start_at_the_working_folder(
    a: Path, b: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = loading.load("image_translation/cyclegan", overrides=["data.a=a", "task.data.b=[b]"], debug=True)
    assert (found.config.data.a, found.config.data.b) == ([a], [b])  # type: ignore[attr-defined]
    found = loading.load("image_translation/pix2pix", overrides=["data.ab=a"], debug=True)
    assert (found.config.data.ab, found.config.data.a) == ([a], None)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"--set task\.data\.b=nowhere: .*does not exist"):
        loading.load("image_translation/cyclegan", overrides=["data.a=a", "data.b=nowhere"])


@pytest.mark.parametrize("recipe", ["cyclegan", "cut", "pix2pix"])
def test_bad_data_is_one_line_and_leaves_nothing(run: Any, a: Path, tmp_path: Path, recipe: str) -> None:
    (tmp_path / "b").mkdir()
    done = run(
        "train", f"image_translation/{recipe}", "--debug", "--out", tmp_path / "run",
        "--set", f"data.a={a}", "--set", f"data.b={tmp_path / 'b'}",
    )  # fmt: skip
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
    assert "b: no files ending in" in done.err
    assert not (tmp_path / "run").exists()
