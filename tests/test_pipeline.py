"""The contract: seeds, batches, outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

import PIL.Image
import pytest
import torch
from pydantic import Field, ValidationError

import genkit
from genkit.errors import Cancelled, InputError, MediaError
from genkit.fields import ImageFile
from genkit.media.image import Image
from genkit.media.provenance import Input
from genkit.pipeline import Closed, Output, Params, Pipeline, Progress
from genkit.runtime import Runtime

CPU = Runtime(torch.device("cpu"))


class SquareParams(Params):
    size: int = Field(4, ge=1, le=64)
    count: int = Field(1, ge=1, le=4)


class Square(Pipeline):
    """A picture of noise. Takes at most `room` items at once, and asks for too much memory beyond."""

    name = "square"
    Params: ClassVar[type[Params]] = SquareParams
    version = 3
    room = 30

    def run(self, batch: Sequence[Any], progress: Progress) -> list[Output]:
        if len(batch) > self.room:
            torch.empty(2**60)
        outputs = []
        for i, params in enumerate(batch, 1):
            seeds = [params.seed + k for k in range(params.count)]
            noise = self.runtime.noise(seeds, (3, params.size, params.size))
            outputs.append(Output(images=[Image.from_tensor(x) for x in noise.sigmoid()], seeds=seeds))
            progress(i, len(batch), note="squares")
        return outputs


@pytest.fixture
def square() -> Square:
    return Square.load(None, CPU)


def pixels(output: Output) -> list[bytes]:
    return [image.pil.tobytes() for image in output.images]


def test_a_seed_makes_the_same_item_and_another_seed_another(square):
    assert pixels(square(seed=7)) == pixels(square(seed=7)) != pixels(square(seed=8))


def test_without_a_seed_one_is_drawn_and_recorded(square):
    first, second = square(), square()
    assert first.seeds != second.seeds
    assert pixels(square(seed=first.seeds[0])) == pixels(first)
    assert first.provenance.params["seed"] == first.seeds[0]


def test_several_items_of_a_seed_are_the_seeds_that_follow_it(square):
    together = square(seed=7, count=4)
    assert together.seeds == [7, 8, 9, 10]
    assert pixels(together) == [pixels(square(seed=seed))[0] for seed in (7, 8, 9, 10)]


def test_an_item_does_not_depend_on_its_batch_nor_on_running_out_of_memory(square):
    batch = [SquareParams(seed=seed) for seed in range(30)]
    expected = [pixels(output) for output in square.generate(batch)]
    assert expected[11] == pixels(square(seed=11))
    square.room = 4
    assert [pixels(output) for output in square.generate(batch)] == expected


def test_a_wrong_argument_is_one_line(square):
    with pytest.raises(InputError, match=r"^unknown parameter 'sise': did you mean 'size'"):
        square(sise=3)
    with pytest.raises(InputError, match=r"^size 0 is out of range: it must be 1 to 64$"):
        square(size=0)


def test_cancelling_from_the_progress_stops_within_a_step(square):
    steps: list[int] = []

    def progress(step: int, total: int, **_: Any) -> None:
        steps.append(step)
        if step == 2:
            raise Cancelled("stopped on request")

    with pytest.raises(Cancelled):
        square.generate([SquareParams(seed=i) for i in range(9)], progress)
    assert steps == [1, 2]


def test_the_provenance_holds_what_the_item_was_made_from(square):
    record = square(seed=5, size=8).provenance
    assert record.pipeline == "square"
    assert record.version == 3
    assert record.params == {"seed": 5, "size": 8, "count": 1}
    assert record.model is None


def test_parameters_are_frozen_and_never_change_the_callers(square):
    params = SquareParams()
    square.generate([params])
    assert params.seed is None
    with pytest.raises(ValidationError):
        params.size = 3


def test_saving_one_writes_the_name_and_several_number_it(square, tmp_path):
    assert square(seed=1).save(tmp_path / "one.png") == [tmp_path / "one.png"]
    paths = square(seed=1, count=3).save(tmp_path / "three.png")
    assert [path.name for path in paths] == ["three-1.png", "three-2.png", "three-3.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", *(path.name for path in paths)]
    with PIL.Image.open(paths[2]) as third:
        assert third.tobytes() == pixels(square(seed=3))[0]


def test_saving_the_same_twice_gives_the_same_bytes(square, tmp_path):
    square(seed=1).save(tmp_path / "a.png")
    square(seed=1).save(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_suffix_that_does_not_fit_writes_nothing(square, tmp_path):
    with pytest.raises(MediaError):
        square(seed=1).save(tmp_path / "one.wav")
    assert list(tmp_path.iterdir()) == []


def test_items_that_differ_in_more_than_their_seed_do_not_share_a_batch():
    key = Square.batch_key
    assert key(SquareParams(seed=1)) == key(SquareParams(seed=2))
    assert key(SquareParams(size=1)) != key(SquareParams(size=2))


def test_an_output_shows_itself_in_a_notebook(square):
    assert "image/png" in square(seed=1)._repr_mimebundle_() or "image/png" in square(seed=1)._repr_mimebundle_()[0]
    assert "Output" in Output()._repr_mimebundle_()["text/plain"]


def test_a_deterministic_run_leaves_torch_as_it_was(square):
    square.runtime = Runtime.pick("cpu", deterministic=True)
    assert pixels(square(seed=7)) == pixels(Square(None, CPU)(seed=7))
    assert not torch.are_deterministic_algorithms_enabled()


def test_loading_by_name_with_a_wish_for_the_device(noise_pipeline):
    loaded = genkit.load(noise_pipeline, device="cpu", dtype="bfloat16", deterministic=True)
    assert loaded.runtime == Runtime(torch.device("cpu"), torch.bfloat16, True)
    assert loaded(seed=3, width=8, height=8).images[0].size == (8, 8)


class Guide(Closed):
    picture: ImageFile
    weight: float = 1.0


class GuidedParams(Params):
    photo: ImageFile | None = None
    guides: list[Guide] = Field(default=[])
    one: Guide | None = None


@pytest.fixture
def picture(tmp_path):
    return Image(PIL.Image.new("RGB", (4, 4), "red")).save(tmp_path / "red.png")


def test_files_in_objects_are_found_by_their_place(picture):
    params = GuidedParams.parse({"guides": [{"picture": picture}, {"picture": picture}], "one": {"picture": picture}})
    assert params.files() == {"guides[0].picture": picture, "guides[1].picture": picture, "one.picture": picture}
    assert {params.file_kind(name) for name in params.files()} == {"image"}
    assert GuidedParams.file_fields() == {"photo": "image"}  # of the fields themselves
    assert GuidedParams.file_kind("guides[0].weight") == GuidedParams.file_kind("nothing[3].there") == ""


def test_files_in_objects_start_from_the_root_and_must_exist(picture):
    params = GuidedParams.parse({"one": {"picture": "red.png"}}, root=picture.parent)
    assert params.files() == {"one.picture": picture}
    with pytest.raises(InputError, match="does not exist"):
        GuidedParams.parse({"guides": [{"picture": "green.png"}]}, root=picture.parent)


def test_the_record_has_digests_of_files_in_objects(picture):
    class Guided(Pipeline):
        name = "guided"
        Params = GuidedParams

        def run(self, batch, progress):
            return [Output(images=[Image(PIL.Image.new("RGB", (1, 1)))]) for _ in batch]

    in_memory = PIL.Image.new("RGB", (4, 4), "red")
    record = Guided.load(None, CPU)(guides=[{"picture": picture}], one={"picture": in_memory}).provenance
    assert record.inputs["guides[0].picture"].sha256 == hashlib.sha256(picture.read_bytes()).hexdigest()
    assert record.inputs["one.picture"] == Input(Image(in_memory).digest())
