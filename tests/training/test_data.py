"""Order and items are functions of a position; processes share out one batch; bad files are met before training."""

from __future__ import annotations

import pickle
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from genkit.errors import InputError, MediaError
from genkit.training.data import Draw, ImageFolder, Lanes, Shuffled, batches
from genkit.training.task import Setup


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five pictures of different sizes, one in a folder below, and a text file."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.jpg", "c.PNG", "d.webp", "more/e.bmp")):
        PILImage.fromarray(rng.integers(0, 255, (20 + i, 30 - i, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    (folder / ".hidden.png").write_bytes(b"x")
    return folder


def setup(said: list[str], strict: bool = False) -> Setup:
    return Setup(torch.device("cpu"), strict=strict, say=said.append)


def test_a_draw_is_an_int_that_survives_pickling() -> None:
    draw = pickle.loads(pickle.dumps(Draw(5, epoch=2, seed=9)))
    assert (draw, draw.epoch, draw.seed) == (5, 2, 9)
    assert [10, 11, 12, 13, 14, 15][draw] == 15
    numbers = {
        torch.rand(1, generator=Draw(*key).generator(stream)).item()
        for key in ((5, 2, 9), (6, 2, 9), (5, 3, 9), (5, 2, 8))
        for stream in ("", "crop")
    }
    assert len(numbers) == 8
    assert torch.equal(torch.rand(3, generator=draw.generator()), torch.rand(3, generator=Draw(5, 2, 9).generator()))


@pytest.mark.parametrize(("count", "size"), [(10, 4), (3, 8), (1, 1), (8, 4)])
def test_shuffled_gives_every_item_once_an_epoch(count: int, size: int) -> None:
    sampler = Shuffled(count, size, seed=1)
    stream = [draw for position in range(3 * count) for draw in sampler.batch(position)]
    for epoch in range(3):
        part = stream[epoch * count : (epoch + 1) * count]
        assert sorted(part) == list(range(count))
        assert {draw.epoch for draw in part} == {epoch}
    if count == 10:
        assert list(map(int, stream[:count])) != list(map(int, stream[count : 2 * count]))
        assert list(map(int, stream[:count])) != list(map(int, Shuffled(count, count, seed=2).batch(0)))
    assert [int(d) for d in pickle.loads(pickle.dumps(sampler)).batch(7)] == [int(d) for d in sampler.batch(7)]


def test_lanes_walk_in_order() -> None:
    lanes = Lanes(23, 4, seed=0)
    rows = torch.tensor([[int(draw) for draw in lanes.batch(position)] for position in range(10)])
    assert rows[:5].T.tolist() == [list(range(5 * lane, 5 * lane + 5)) for lane in range(4)]
    assert torch.equal(rows[:5], rows[5:])
    assert [lanes.batch(position)[0].epoch for position in (4, 5)] == [0, 1]
    with pytest.raises(InputError, match="3 segments are fewer than batch_size 4"):
        Lanes(3, 4, seed=0)


def test_a_stream_goes_on_where_it_was_and_processes_share_its_batches() -> None:
    data, sampler = torch.arange(10), Shuffled(10, 4, seed=5)
    whole = list(islice(batches(data, sampler), 8))
    before = torch.get_rng_state()
    later = list(islice(batches(data, sampler, start=3), 5))
    assert torch.equal(torch.get_rng_state(), before)  # starting a loader draws nothing from the common generator
    assert torch.equal(torch.stack(whole[3:]), torch.stack(later))
    shares = [list(islice(batches(data, sampler, rank=rank, processes=2), 8)) for rank in range(2)]
    assert torch.equal(torch.stack(whole), torch.cat([torch.stack(share) for share in shares], 1))


@pytest.mark.slow
def test_reading_processes_change_nothing(photos: Path) -> None:
    data, sampler = ImageFolder(photos, size=16), Shuffled(5, 4, seed=5)
    plain = list(islice(batches(data, sampler), 4))
    assert torch.equal(torch.stack(plain), torch.stack(list(islice(batches(data, sampler, workers=2), 4))))


def test_pictures_are_functions_of_their_draw(photos: Path) -> None:
    data = ImageFolder(photos, size=16, load_size=18)
    assert len(data) == 5
    picture = data[Draw(1, 0, 7)]
    assert (picture.shape, picture.dtype) == ((3, 16, 16), torch.float32)
    assert 0 <= picture.min() < 0.2 < 0.8 < picture.max() <= 1
    assert torch.equal(picture, ImageFolder(photos, size=16, load_size=18, keep=0)[Draw(1, 0, 7)])
    crops = torch.stack([data[Draw(1, epoch, 7)] for epoch in range(20)])
    assert len(crops.flatten(1).unique(dim=0)) > 5
    centre = ImageFolder(photos, size=16, crop="center")
    assert torch.equal(centre[Draw(1, 0, 7)], centre[Draw(1, 1, 8)])
    scaled = ImageFolder(photos, size=16, load_size=18, value_range=(-1, 1))[Draw(1, 0, 7)]
    torch.testing.assert_close(scaled, picture * 2 - 1)


def test_a_small_picture_is_enlarged_to_the_crop(photos: Path) -> None:
    assert ImageFolder(photos, size=64)[0].shape == (3, 64, 64)


def test_unreadable_files_are_named_counted_and_left_out(photos: Path) -> None:
    (photos / "torn.jpg").write_bytes((photos / "b.jpg").read_bytes()[:200])
    (photos / "empty.png").touch()
    said: list[str] = []
    assert len(ImageFolder(photos, size=8, setup=setup(said))) == 5
    assert any("torn.jpg" in line for line in said)
    assert any("empty.png" in line for line in said)
    assert said[-1] == "left out 2 unreadable file(s) of 7"
    with pytest.raises(MediaError, match=r"(torn|empty).* \(2 such file\(s\);"):
        ImageFolder(photos, size=8, setup=setup([], strict=True))


def test_nothing_to_learn_from_is_one_clear_line(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no files ending in .*\.png.* in there"):
        ImageFolder(tmp_path / "empty", size=8)
    (tmp_path / "empty/x.png").write_bytes(b"not a picture")
    with pytest.raises(MediaError, match=r"none of 1 files can be read; the first: .*x\.png"):
        ImageFolder(tmp_path / "empty", size=8)
    assert len(ImageFolder([photos, photos / "more"], size=8)) == 6
    assert len(ImageFolder(photos, size=8, recursive=False)) == 4
