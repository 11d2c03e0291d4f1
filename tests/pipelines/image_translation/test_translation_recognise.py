"""Every published layout is told by its tensors, loads with nothing missing and nothing left over, and is put in words;
what is nearly one is refused in a line that names the file and what is wrong."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import translation_kit as kit

from genkit.errors import ModelError
from pipelines.image_translation.architectures import KINDS
from pipelines.image_translation.networks import resnet, unet
from pipelines.image_translation.recognise import header, recognise


def refusal(tensors: dict[str, torch.Tensor], about: dict[str, str] | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        recognise(tensors, about, name="a.pth")
    message = str(caught.value)
    assert message.startswith(("a.pth", "model a.pth"))
    assert len(message) < 600
    return message


@pytest.mark.parametrize("name", kit.CASES)
def test_a_published_layout_is_recognised_at_full_size(name):
    case = kit.CASES[name]
    tensors = kit.blank(case.shapes(**case.options))
    found = recognise(tensors)
    assert (found.kind, found.words) == (case.kind, case.words)
    assert found.generates == (name in kit.GENERATORS)
    network = found.build()
    assert sum(parameter.numel() for parameter in network.parameters()) == case.parameters
    left = tensors.keys() - network.state_dict().keys()
    assert all(re.search(r"running_|num_batches", key) for key in left), left
    assert bool(left) == (name == "before 0.4")
    assert network.state_dict().keys() <= tensors.keys()


@pytest.mark.parametrize("name", kit.CASES)
def test_a_published_layout_loads_every_value(name):
    tensors = kit.thin(name)
    loaded = recognise(tensors).build().state_dict()
    assert loaded
    for key, value in loaded.items():
        assert torch.equal(value, tensors[key]), key


def test_the_real_keys_are_those_of_the_kit_and_are_recognised(shared):
    """`checkpoint_keys.md` was printed from the authors' classes."""
    made = [kit.CASES[name].shapes(**kit.CASES[name].options) for name in kit.CASES]
    kinds = []
    for title, parameters, shapes in kit.listed(shared / "facts" / "checkpoint_keys.md"):
        if "fast_neural_style" in title or "AdaIN" in title:
            refusal(kit.blank(shapes))  # of another pipeline
            continue
        assert shapes in made, title
        found = recognise(kit.blank(shapes))
        kinds.append(found.kind)
        assert sum(p.numel() for p in found.build().parameters()) == parameters, title
    assert len(kinds) == 13
    assert set(kinds) == {"resnet", "unet", "patch", "pixel"}


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (kit.resnet(6, 0, into=1, out=3), resnet.Layout(1, 3, 6, 0)),
        (kit.resnet(6, 0, antialias=True), resnet.Layout(3, 3, 6, 0, antialias_down=True, antialias_up=True)),
        (kit.resnet(5, 2, into=4, out=1), resnet.Layout(4, 1, 5, 2)),
        (kit.resnet(5, 2, "batch", dropout=True), resnet.Layout(3, 3, 5, 2, "batch", True)),
        (kit.unet(3, 5, into=1, out=4), unet.Layout(1, 4, 3, 5)),
        (kit.unet(3, 2, "instance"), unet.Layout(3, 3, 3, 2, "instance", False)),
    ],
    ids=["one plane in", "no block", "four planes in", "batch and dropout", "unet planes", "flat unet"],
)
def test_sizes_are_read_off_the_tensors(shapes, expected):
    found = recognise(kit.drawn(shapes))
    assert found.layout == expected
    found.build()


def test_other_numbers_of_planes_are_said():
    assert "from 1 to 3 planes" in recognise(kit.drawn(kit.resnet(4, 1, into=1))).words


def test_stargan_and_other_discriminators_of_other_sizes_are_read_too():
    found = recognise(kit.drawn(kit.stargan(labels=3, width=6, blocks=2)))
    assert (found.layout.labels, found.layout.width, found.layout.blocks, found.layout.channels) == (3, 6, 2, 3)
    found = recognise(kit.drawn(kit.stargan_critic(labels=8, width=2, layers=5, side=64)))
    assert (found.layout.labels, found.layout.side, found.layout.layers) == (8, 64, 5)
    for layers in (1, 2, 5):
        assert recognise(kit.drawn(kit.patch(width=2, layers=layers))).layout.layers == layers


def test_statistics_that_nobody_used_are_dropped_but_stargan_keeps_its_own():
    old = kit.thin("before 0.4")
    kept = recognise(old).tensors
    assert kept.keys() == kit.thin("cyclegan 9").keys()
    stars = kit.thin("stargan")
    assert recognise(stars).tensors.keys() == stars.keys()
    assert "main.1.running_var" in stars


def test_a_file_older_than_batch_counts_loads_and_can_be_moved():
    tensors = {key: value for key, value in kit.thin("batch").items() if not key.endswith("num_batches_tracked")}
    network = recognise(tensors).build()
    assert not any(value.is_meta for value in network.state_dict().values())


def test_half_precision_becomes_single():
    tensors = {key: value.half() if value.is_floating_point() else value for key, value in kit.thin("batch").items()}
    network = recognise(tensors).build()
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    assert torch.equal(network.state_dict()["model.1.weight"], tensors["model.1.weight"].float())
    assert not network.training


# -------------------------------------------------------------------------------------------------- what a header says


def test_a_header_states_what_no_tensor_shows():
    layout = resnet.Layout(width=4, blocks=1, residual=True)
    tensors = resnet.ResnetGenerator(layout).state_dict()
    assert recognise(tensors).layout == replace(layout, residual=False)
    found = recognise(tensors, header("resnet", layout, direction="a-to-b", training={"steps": 5}))
    assert found.layout == layout
    assert "adding to its picture" in found.words
    assert found.build().layout.residual
    dry = unet.Layout(width=2, downs=5, dropout=False)
    assert not recognise(unet.UnetGenerator(dry).state_dict(), header("unet", dry)).layout.dropout


def test_a_header_holds_the_layout_and_whatever_else_is_given():
    about = header("resnet", resnet.Layout(), direction="b-to-a", training={"steps": 5})
    assert about["architecture"] == "genkit.image-translation"
    assert json.loads(about["layout"])["kind"] == "resnet"
    assert (about["direction"], json.loads(about["training"])) == ("b-to-a", {"steps": 5})


LAYOUT = resnet.Layout(width=4, blocks=1)


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        (header("resnet", replace(LAYOUT, blocks=2))["layout"], "differ"),
        (header("resnet", replace(LAYOUT, width=10**9))["layout"], "differ"),
        (header("resnet", replace(LAYOUT, dropout=True))["layout"], "differ"),
        (header("unet", unet.Layout())["layout"], "update genkit"),
        ('{"kind": "unet"}', "differ"),
        ('{"kind": "resnet", "blocks": true}', "'blocks' as 'True'"),
        ('{"kind": "resnet", "residual": "yes"}', "'residual' as 'yes'"),
        ('{"kind": "resnet", "colour": 3}', "'colour'"),
        ('{"width": 4}', "damaged"),
        ("[1, 2]", "damaged"),
        ("{", "damaged"),
        ("[" * 100_000, "damaged"),
    ],
)
def test_a_header_that_is_damaged_or_not_of_these_tensors_is_refused(stated, says):
    tensors = resnet.ResnetGenerator(LAYOUT).state_dict()
    assert says in refusal(tensors, {"architecture": "genkit.image-translation", "layout": stated})


def test_the_metadata_of_others_is_not_read():
    tensors = resnet.ResnetGenerator(LAYOUT).state_dict()
    assert recognise(tensors, {"format": "pt", "layout": "flowers"}).layout == LAYOUT


# ------------------------------------------------------------------------------------------------------ what is refused


def test_a_tensor_missing_left_over_or_of_another_shape_is_named():
    good = kit.thin("cyclegan 6")
    missing = {key: value for key, value in good.items() if key != "model.12.conv_block.5.bias"}
    assert "1 missing (model.12.conv_block.5.bias)" in refusal(missing)
    assert "1 unexpected (model.99.bias)" in refusal({**good, "model.99.bias": torch.zeros(3)})
    odd = {**good, "model.4.weight": torch.zeros(8, 4, 5, 5)}
    assert "1 of another shape (model.4.weight [8, 4, 5, 5] for [8, 4, 3, 3])" in refusal(odd)
    assert "CycleGAN ResNet generator, 6 blocks" in refusal(missing)


SMALL = {
    "resnet": kit.resnet(2, 1, "batch", dropout=True),
    "cut": kit.resnet(2, 1, antialias=True),
    "unet": kit.unet(2, 4),
    "patch": kit.patch(3, 2, "batch", layers=2),
    "pixel": kit.pixel(3, 2),
    "stargan": kit.stargan(2, 2, 1),
    "stargan D": kit.stargan_critic(2, 2, 2, 8),
}


@pytest.mark.parametrize("name", SMALL)
def test_any_tensor_missing_is_one_line(name):
    good = kit.drawn(SMALL[name])
    recognise(good)
    for key in good:
        rest = {other: value for other, value in good.items() if other != key}
        if key.endswith("num_batches_tracked"):
            recognise(rest)
        else:
            refusal(rest)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (0, 3, 7, 7), (2, 3, 7, 7, 2), (4, 3, 7, 7)])
def test_a_telling_name_with_nothing_behind_it_is_one_line(kind, shape):
    refusal({name: torch.zeros(shape) for name in KINDS[kind].telling})


def test_depth_is_bounded():
    scales = {f"model.{i}.weight": torch.zeros(1, 1, 3, 3) for i in range(1, 60)}
    assert "scales" in refusal(scales)
    nested = {f"model.model.1{'.model.3' * i}.model.1.weight": torch.zeros(1, 1, 4, 4) for i in range(400)}
    ends = {"model.model.0.weight": torch.zeros(1, 1, 4, 4), "model.model.3.weight": torch.zeros(1, 1, 4, 4)}
    assert "scales" in refusal(nested | ends)


def test_other_families_are_named():
    several = {f"{name}.{key}": value for name in ("G_A", "G_B") for key, value in kit.thin("cyclegan 6", 2).items()}
    assert "several networks (G_A, G_B)" in refusal(several)
    assert "heads that CUT trains with" in refusal({"mlp_0.0.weight": torch.zeros(256, 3)})
    assert "looks like a Transformer-XL" in refusal({"word_emb.weight": torch.zeros(3, 3)})
    assert refusal({"a": torch.zeros(1)}) == "a.pth is no image translation model"


def test_no_file_of_this_package_is_longer_than_it_should_be():
    """House rule; the readers of five architectures would soon be one long file."""
    package = Path(__file__).parents[3] / "pipelines" / "image_translation"
    for name in ("architectures.py", "recognise.py", "loading.py", "models.py"):
        assert len((package / name).read_text("utf-8").splitlines()) < 300
