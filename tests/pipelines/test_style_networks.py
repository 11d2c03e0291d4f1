"""The networks: published weights load as they are, what is computed is what their authors computed, at any size."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from style_kit import NETWORKS, WIDTHS, ThinVgg, adain_folder, adain_tensors, he, network, picture, small_file
from torch import Tensor, nn

from genkit import weights
from genkit.errors import ModelError
from genkit.media.image import Image
from pipelines.style_transfer.loading import encoder_from, feature_network, style_model
from pipelines.style_transfer.models import FEATURES, MODELS
from pipelines.style_transfer.networks.adain import Decoder, Encoder, adain, statistics
from pipelines.style_transfer.networks.features import ARCHITECTURES, Pool, Small, SqueezeNet, Vgg
from pipelines.style_transfer.networks.frozen import average_pool, conv_relu
from pipelines.style_transfer.networks.transformer import TransformerNet

# ------------------------------------------------------------------------------------------------- frozen layers

CONVOLUTIONS = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "1x1": {"kernel_size": 1},
    "replicated": {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"},
    "strided": {"kernel_size": 7, "padding": 3, "padding_mode": "replicate", "stride": 2},
    "strided, zeros": {"kernel_size": 3, "padding": 1, "stride": 2},
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_frozen_convolution_is_the_ordinary_one_to_the_bit(kind, layout):
    conv = he(nn.Conv2d(5, 6, **CONVOLUTIONS[kind])).to(memory_format=layout)
    x = torch.randn(1, 5, 13, 10, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=layout)
    results = []
    for frozen in (False, True):
        conv.requires_grad_(not frozen)
        leaf = x.clone().requires_grad_()
        y = conv_relu(leaf, conv)
        y.square().sum().backward()
        results.append((y.detach(), leaf.grad))
        assert (conv.weight.grad is None) == frozen
        conv.weight.grad = None
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("size", [(8, 8), (9, 10), (11, 7)])
def test_average_pooling_is_torchs_at_sides_of_any_parity(size, window):
    x = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(1))
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    a, b = average_pool(one, window, 2), F.avg_pool2d(two, window, 2, ceil_mode=True)
    assert torch.equal(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    assert torch.equal(one.grad, two.grad)


@pytest.mark.parametrize("kind", Pool.FACTORS)
def test_pooling_of_a_flat_field(kind):
    """A constant c: max keeps it, average and L2 scale it by their stated factors."""
    expected = {"max": 1.0, "average": 2.0, "l2": 0.78 * 2}[kind]
    torch.testing.assert_close(Pool(kind)(torch.full((1, 2, 6, 6), 0.7)), torch.full((1, 2, 3, 3), 0.7 * expected))


# ------------------------------------------------------------------------------------------------ feature networks


def test_every_named_network_has_an_entry():
    assert set(ARCHITECTURES) == set(FEATURES)
    assert MODELS.keys() > FEATURES.keys()


@pytest.mark.parametrize("name", NETWORKS)
def test_taps_are_what_their_names_say_at_any_size(name):
    eyes = network(name)
    names = list(eyes.taps)
    for h, w in [(64, 48), (33, 47), (17, 64)]:
        found = eyes(picture(h, w), names)
        assert set(found) == set(names)
        for tap in names:
            assert found[tap].min() >= 0
            assert found[tap].isfinite().all()
    some = names[:2]
    assert all(torch.equal(f, found[tap]) for tap, f in eyes(picture(17, 64), some).items())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_is_its_items(name):
    eyes = network(name)
    names = list(eyes.defaults.style)
    batch = torch.cat([picture(40, 33, seed) for seed in (1, 2)])
    together, alone = eyes(batch, names), eyes(batch[1:], names)
    for tap in names:
        torch.testing.assert_close(together[tap][1:], alone[tap], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "depth"), [("vgg16", 16), ("vgg19", 19)])
def test_torchvisions_vgg_fits_key_for_key(name, depth):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        theirs, ours = getattr(models, name)(weights=None), Vgg(depth)
    wanted = {key: t.shape for key, t in theirs.state_dict().items() if key.startswith("features.")}
    assert {key: t.shape for key, t in ours.state_dict().items()} == wanted


def test_a_vgg_computes_what_torchvisions_computes():
    """Away from the border, where replicate padding in the first layer differs from zeros."""
    make_layers = pytest.importorskip("torchvision.models.vgg").make_layers
    ours = network("vgg19")
    plan: list[Any] = []
    for count, width in zip(ThinVgg.PLANS[19], ThinVgg.WIDTHS, strict=True):
        plan += [*[width] * count, "M"]
    theirs = make_layers(plan)
    theirs.load_state_dict({key.removeprefix("features."): t for key, t in ours.state_dict().items()})
    x = picture(96, 112)
    y = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    found = ours(x, list(ours.taps))
    for index, layer in enumerate(theirs):
        y = layer(y)
        tap = next((tap for tap, place in ours.taps.items() if place == index), None)
        if tap in ("relu1_1", "relu2_1", "relu3_1", "relu4_2"):
            edge = {112: 4, 56: 4, 28: 5, 14: 5}[y.shape[3]]
            inside = (..., slice(edge, -edge), slice(edge, -edge))
            torch.testing.assert_close(found[tap][inside], y[inside].detach(), rtol=1e-4, atol=1e-5)


def squeezenet_pair(tensors: Mapping[str, Tensor] | None = None) -> tuple[SqueezeNet, nn.Module]:
    """Ours as it was trained, and torchvision's, with the same weights."""
    models = pytest.importorskip("torchvision.models")
    theirs = models.squeezenet1_0(weights=None)
    theirs.load_state_dict(tensors) if tensors else he(theirs)
    ours = SqueezeNet("max", dense=False)
    ours.load_state_dict({k: t for k, t in theirs.state_dict().items() if k.startswith("features.")})
    ours.freeze()
    return ours, theirs.eval().requires_grad_(False)


def test_squeezenet_computes_what_torchvisions_computes():
    """Theirs does not pad the first convolution; padded beforehand as ours pads, the rest is the same to the edge."""
    ours, theirs = squeezenet_pair()
    x = picture(67, 90)
    y = F.pad(ours.normalise(x), (3,) * 4, mode="replicate")
    found = ours(x, list(ours.taps))
    for index, layer in enumerate(theirs.features):
        y = layer(y)
        for tap, place in ours.taps.items():
            if place == index:
                torch.testing.assert_close(found[tap], y, rtol=1e-4, atol=1e-5)


def test_squeezenets_published_weights_recognise_a_cup_of_coffee(shared: Path):
    """End to end: a file's weights in ours, a photo, torchvision's classifier; 967 is ImageNet's espresso."""
    file, photo = shared / "data/weights/squeezenet1_0.safetensors", shared / "data/images/content/coffee.jpg"
    if not (file.is_file() and photo.is_file()):
        pytest.skip("no squeezenet1_0.safetensors and coffee.jpg in ../shared/data")
    ours, theirs = squeezenet_pair({key: t.float() for key, t in weights.read(file).items()})
    eyes = feature_network("squeezenet1_0", MODELS, path=file, pooling="max", dense=False)
    assert all(torch.equal(a, b) for a, b in zip(eyes.parameters(), ours.parameters(), strict=True))
    x = Image.open(Image.open(photo).pil.resize((224, 224))).tensor()[None]
    scores = theirs.classifier(eyes(x, ["fire9"])["fire9"]).flatten(1).softmax(1)
    assert scores[0, 967] > 0.9


def test_small_has_its_teachers_channels_and_places():
    student, teacher = network("small"), SqueezeNet("max", dense=False).freeze()
    x = picture(64, 80)
    names = list(Small.HEADS)
    for tap, f in student(x, names).items():
        theirs = teacher(x, [tap])[tap]
        assert f.shape[1] == theirs.shape[1]
        assert all(abs(a - b) <= 1 for a, b in zip(f.shape[2:], theirs.shape[2:], strict=True))


@pytest.mark.parametrize("width", [4, 10])
def test_the_width_of_small_is_read_off_its_tensors(tmp_path, width):
    eyes = feature_network("small", MODELS, path=small_file(tmp_path / "s.safetensors", width))
    assert eyes.features[0][0].out_channels == width
    assert not any(p.requires_grad for p in eyes.parameters())
    assert not eyes.training


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_classifier_in_the_file_is_left_out(tmp_path, suffix):
    tensors = {
        **he(SqueezeNet()).state_dict(),
        "classifier.1.weight": torch.ones(3, 3),
        "classifier.1.bias": torch.ones(3),
    }
    path = tmp_path / f"squeezenet{suffix}"
    torch.save(tensors, path) if suffix == ".pth" else save_file(tensors, path)
    eyes = feature_network("squeezenet1_0", MODELS, path=path)
    assert torch.equal(eyes.state_dict()["features.0.weight"], tensors["features.0.weight"])


def test_half_precision_weights_become_float32(tmp_path):
    save_file({key: t.half() for key, t in he(Small(4)).state_dict().items()}, tmp_path / "s.safetensors")
    eyes = feature_network("small", MODELS, path=tmp_path / "s.safetensors")
    assert {p.dtype for p in eyes.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_another_networks_file_is_refused_in_one_line(tmp_path, name):
    torch.save({"features.0.weight": torch.zeros(1, 2), "x": torch.zeros(3)}, tmp_path / "odd.pth")
    with pytest.raises(ModelError) as raised:
        feature_network(name, MODELS, path=tmp_path / "odd.pth")
    assert "\n" not in str(raised.value)
    assert "odd.pth" in str(raised.value)


# ------------------------------------------------------------------------------------------- published checkpoints


def published_fast(width: int = 32) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Keys and shapes of pytorch/examples' TransformerNet, from its description."""
    plan = [("conv1", 3, 1, 9), ("conv2", 1, 2, 3), ("conv3", 2, 4, 3)]
    plan += [(f"res{i}.conv{j}", 4, 4, 3) for i in range(1, 6) for j in (1, 2)]
    plan += [("deconv1", 4, 2, 3), ("deconv2", 2, 1, 3), ("deconv3", 1, 3, 9)]
    for name, channels, wide, kernel in plan:
        into = 3 if name == "conv1" else channels * width
        out = 3 if name == "deconv3" else wide * width
        yield f"{name}.conv2d.weight", (out, into, kernel, kernel)
        yield f"{name}.conv2d.bias", (out,)
    norms = {"in1": 1, "in2": 2, "in3": 4, "in4": 2, "in5": 1}
    norms |= {f"res{i}.in{j}": 4 for i in range(1, 6) for j in (1, 2)}
    for name, wide in norms.items():
        yield f"{name}.weight", (wide * width,)
        yield f"{name}.bias", (wide * width,)


def published_encoder() -> Iterator[tuple[str, tuple[int, ...]]]:
    """vgg_normalised.pth: all of VGG-19 behind a 1x1 convolution, though only what lies before relu4_1 is used."""
    yield from (("0.weight", (3, 3, 1, 1)), ("0.bias", (3,)))
    index, channels = 2, 3
    for count, width in zip((2, 2, 4, 4, 4), (64, 128, 256, 512, 512), strict=True):
        for _ in range(count):
            yield f"{index}.weight", (width, channels, 3, 3)
            yield f"{index}.bias", (width,)
            index, channels = index + 3, width  # padding, convolution, ReLU
        index += 1  # pooling


def facts(shared: Path, title: str) -> dict[str, tuple[int, ...]]:
    """A table of keys and shapes from ../shared/facts."""
    file = shared / "facts/checkpoint_keys.md"
    if not file.is_file():
        pytest.skip("no checkpoint_keys.md in ../shared/facts")
    section = file.read_text().split(f"### {title}\n")[1].split("\n### ")[0]
    rows = re.findall(r"^    (\S+) \(([\d, ]*)\)$", section, re.MULTILINE)
    return {key: tuple(int(n) for n in shape.split(",") if n.strip()) for key, shape in rows}


def random_tensors(plan: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {key: 0.05 * torch.randn(shape, generator=generator) for key, shape in plan.items()}


def test_the_published_key_lists_are_those_of_the_files(shared: Path):
    assert dict(published_fast()) == facts(shared, "pytorch/examples fast_neural_style TransformerNet")
    assert dict(published_encoder()) == facts(shared, "pytorch-AdaIN vgg_normalised.pth")
    theirs = facts(shared, "pytorch-AdaIN decoder.pth")
    with torch.device("meta"):
        assert {key: tuple(t.shape) for key, t in Decoder().net.state_dict().items()} == theirs


@pytest.mark.parametrize("old", [False, True])
def test_a_published_fast_network_loads_unchanged(tmp_path, old):
    """Pickled, as published; those saved by PyTorch before 0.4 carry statistics that instance normalisation never
    had."""
    tensors = random_tensors(dict(published_fast()))
    extra = {}
    for key, t in tensors.items() if old else ():
        if re.search(r"in\d\.weight$", key):
            base = key.removesuffix("weight")
            extra |= {f"{base}running_mean": torch.zeros(len(t)), f"{base}running_var": torch.ones(len(t))}
    torch.save({**tensors, **extra}, tmp_path / "candy.pth")
    made = style_model(tmp_path / "candy.pth")
    assert isinstance(made, TransformerNet)
    assert made.width == 32
    assert all(torch.equal(t, tensors[key]) for key, t in made.state_dict().items())
    assert len(tensors) == len(made.state_dict()) == 62


def test_the_published_adain_pair_loads_unchanged(tmp_path):
    with torch.device("meta"):
        plan = {key: tuple(t.shape) for key, t in Decoder().net.state_dict().items()}
    # Zeros: eighty megabytes of random numbers would prove no more. Shapes are what decides.
    torch.save({key: torch.zeros(shape) for key, shape in published_encoder()}, tmp_path / "vgg_normalised.pth")
    torch.save({key: torch.zeros(shape) for key, shape in plan.items()}, tmp_path / "decoder.pth")
    encoder, decoder = style_model(tmp_path)
    assert encoder.widths == (64, 128, 256, 512)
    assert len(encoder.net.state_dict()) == 2 * (1 + 2 + 2 + 4 + 1)  # ends with relu4_1
    assert len(decoder.net.state_dict()) == len(plan) == 18


# -------------------------------------------------------------------------------------------------- in one pass: fast


def fast(width: int = 4) -> TransformerNet:
    made = he(TransformerNet(width))
    assert isinstance(made, TransformerNet)
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (100, 41), (64, 64), (35, 34)])
def test_fast_gives_back_the_size_it_was_given(size):
    y = fast()(picture(*size))
    assert y.shape[2:] == size
    assert y.min() >= 0
    assert y.max() <= 1


def test_fast_works_on_0_to_255_inside():
    """As its published weights do: what the first convolution sees, and what the last one gives."""
    made, seen = fast(), []
    made.conv1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    made.deconv3.conv2d.weight.zero_()
    made.deconv3.conv2d.bias.copy_(torch.tensor([0.0, 51.0, 300.0]))
    x = picture(32, 36)
    y = made(x)
    assert torch.equal(seen[0], x * 255)
    torch.testing.assert_close(y[0, :, 0, 0], torch.tensor([0.0, 0.2, 1.0]))


def test_the_padding_of_odd_sides_stays_outside():
    """A picture extended by its own reflection is what a padded one is: inside, nothing else comes of it."""
    made, x = fast(), picture(45, 50)
    wide = F.pad(x, (0, 2, 0, 3), mode="reflect")
    torch.testing.assert_close(made.raw(x), made.raw(wide)[..., :45, :50])


# ----------------------------------------------------------------------------------------------------------- adain


def pair() -> tuple[Encoder, Decoder]:
    encoder, decoder = he(Encoder(WIDTHS)), he(Decoder(WIDTHS), 1)
    return encoder.eval().requires_grad_(False), decoder.eval().requires_grad_(False)  # type: ignore[return-value]


def test_adain_gives_the_content_the_styles_statistics():
    content, style = torch.randn(2, 5, 9, 8), 3 + 2 * torch.randn(2, 5, 7, 11)
    for one, two in zip(statistics(adain(content, [(style, 1.0)])), statistics(style), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)


def test_adain_of_the_content_itself_is_the_content():
    content = torch.randn(1, 5, 9, 8)
    torch.testing.assert_close(adain(content, [(content, 1.0)]), content, rtol=1e-4, atol=1e-4)


def test_alpha_goes_from_the_content_to_the_style():
    content, style = torch.randn(1, 5, 9, 8), torch.randn(1, 5, 7, 11)
    full = adain(content, [(style, 1.0)])
    assert torch.equal(adain(content, [(style, 1.0)], 0.0), content)
    torch.testing.assert_close(adain(content, [(style, 1.0)], 0.3), 0.3 * full + 0.7 * content)


def test_styles_blend_by_their_weights():
    content, a, b = (torch.randn(1, 5, 9, 8) for _ in range(3))
    one, two = (adain(content, [(style, 1.0)]) for style in (a, b))
    torch.testing.assert_close(adain(content, [(a, 3.0), (b, 1.0)]), 0.75 * one + 0.25 * two)
    torch.testing.assert_close(adain(content, [(a, 2.0), (a, 5.0)]), one)


def test_a_single_position_has_no_spread():
    mean, std = statistics(torch.full((1, 3, 1, 1), 2.0))
    assert torch.equal(mean, torch.full((1, 3, 1, 1), 2.0))
    assert std.isfinite().all()


@pytest.mark.parametrize("size", [(16, 16), (33, 47), (50, 41)])
def test_the_decoder_mirrors_the_encoder(size):
    encoder, decoder = pair()
    taps = encoder(picture(*size))
    assert [t.shape[1] for t in taps] == list(WIDTHS)
    h, w = (-(-n // 8) for n in size)
    assert taps[-1].shape[2:] == (h, w)
    assert decoder(taps[-1]).shape[1:] == (3, 8 * h, 8 * w)


def test_an_adain_model_is_a_folder_or_one_file(tmp_path):
    encoder, decoder = adain_tensors()
    folder = adain_folder(tmp_path / "folder")
    joined = {f"encoder.{k}": t for k, t in encoder.items()} | {f"decoder.{k}": t for k, t in decoder.items()}
    save_file(joined, tmp_path / "one.safetensors")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    save_file(encoder, mixed / "encoder.safetensors")
    torch.save(decoder, mixed / "decoder.pth")
    for path in (folder, tmp_path / "one.safetensors", mixed):
        front, back = style_model(path)
        assert all(torch.equal(t, encoder[key]) for key, t in front.net.state_dict().items())
        assert all(torch.equal(t, decoder[key]) for key, t in back.net.state_dict().items())
    assert encoder_from(folder / "vgg_normalised.pth").widths == WIDTHS


def test_a_folder_with_one_fast_network_is_that_network(tmp_path, files):
    (tmp_path / "export").mkdir()
    (tmp_path / "export/fast.safetensors").write_bytes(files.fast.read_bytes())
    assert isinstance(style_model(tmp_path / "export"), TransformerNet)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ("decoder", "half of an AdaIN model"),
        ("encoder", "half of an AdaIN model"),
        ("small", "is no style model"),
        ("other", "is no style model"),
    ],
)
def test_what_is_no_style_model_is_said_in_one_line(tmp_path, tensors, says):
    encoder, decoder = adain_tensors()
    kinds = {"decoder": decoder, "encoder": encoder, "small": Small(4).state_dict(), "other": {"x": torch.ones(2)}}
    torch.save(kinds[tensors], tmp_path / "model.pth")
    with pytest.raises(ModelError, match=says) as raised:
        style_model(tmp_path / "model.pth")
    assert "\n" not in str(raised.value)


def test_a_pair_that_does_not_fit_together_is_refused(tmp_path):
    """An encoder of one width and a decoder of another would fail in the middle of a picture."""
    folder = adain_folder(tmp_path / "folder")
    torch.save(Decoder((4, 8, 8, 12)).net.state_dict(), folder / "decoder.pth")
    with pytest.raises(ModelError, match=r"decoder.* 12 .* 16|16 .* 12"):
        style_model(folder)


@pytest.mark.parametrize("broken", ["conv1.conv2d.weight", "encoder 29.weight", "decoder 14.weight"])
def test_malformed_shapes_are_one_line(tmp_path, files, broken):
    part, _, key = broken.rpartition(" ")
    if part:
        path = adain_folder(tmp_path / "folder")
        file = path / {"encoder": "vgg_normalised.pth", "decoder": "decoder.pth"}[part]
    else:
        path = file = tmp_path / "fast.pth"
        torch.save(weights.read(files.fast), path)
    tensors = {name: t.clone() for name, t in weights.read(file).items()}  # not mapped: the file is written anew
    for shape in ((), (0,), (3, 1, 2)):
        torch.save({**tensors, key: torch.zeros(shape)}, file)
        with pytest.raises(ModelError) as raised:
            style_model(path)
        assert "\n" not in str(raised.value)


def test_a_file_that_claims_a_gigantic_width_takes_no_memory(tmp_path, files):
    """Shapes come from the file: a network is sized by them only once they have proved consistent."""
    tensors = weights.read(files.fast)
    tensors["conv1.conv2d.weight"] = torch.zeros(200_000, 3, 1, 1)
    torch.save(tensors, tmp_path / "fast.pth")
    with pytest.raises(ModelError, match="of another shape"):
        style_model(tmp_path / "fast.pth")
    tensors = weights.read(files.small)
    tensors["features.0.0.weight"] = torch.zeros(200_000, 3, 1, 1)
    torch.save(tensors, tmp_path / "small.pth")
    with pytest.raises(ModelError, match="of another shape"):
        feature_network("small", MODELS, path=tmp_path / "small.pth")
