"""Model files: what is written is read, and what is wrong with one is said in one line."""

from __future__ import annotations

import json
from typing import Any

import composing_kit
import pytest
import torch
from composing_kit import CONFIG, VOCABULARY, config_text, header, model_file
from safetensors.torch import save_file

from genkit import weights
from genkit.errors import ModelError
from genkit.runtime import Runtime
from pipelines.midi_generation.composing.studio import Studio
from pipelines.midi_generation.loading import load
from pipelines.midi_generation.networks.transformer_xl import TransformerXL
from pipelines.midi_generation.tokens.vocabulary import Settings, Vocabulary


def test_what_is_written_is_read(tmp_path) -> None:
    model = load(model_file(tmp_path / "m.safetensors"))
    assert model.architecture == "transformer-xl"
    assert model.network.config == CONFIG
    assert not model.network.training
    assert model.vocabulary.names == VOCABULARY.names
    assert model.instruments == composing_kit.HEARD
    for name, tensor in composing_kit.network().state_dict().items():
        assert torch.equal(model.network.state_dict()[name], tensor)


def test_a_folder_with_one_model_and_half_precision(tmp_path) -> None:
    halved = {name: tensor.half() for name, tensor in composing_kit.network().state_dict().items()}
    model_file(tmp_path / "m.safetensors", tensors=halved)
    model = load(tmp_path)
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.float32}
    model_file(tmp_path / "n.safetensors")
    with pytest.raises(ModelError, match="holds 2 safetensors files; name the one"):
        load(tmp_path)


WRONG = {
    "architecture": ("", "genkit.style-transfer.fast", "genkit.midi-generation.mamba"),
    "vocabulary": ("", "{}", "[]", "null", '{"settings": {"tokenization": "Octuple"}, "miditok": {}}', "[" * 100_000),
    "instruments": ("", "x", '{"0": 1}'),
    "network": (
        "",
        "{",
        "[]",
        "null",
        "{}",
        "[" * 100_000,
        config_text(layers=0),
        config_text(layers=10**9),
        config_text(layers="2"),
        config_text(layers=True),
        config_text(width=33),
        config_text(width=10**5, feedforward=10**6),
        config_text(heads=0),
        config_text(heads=3),
        config_text(feedforward=-1),
        config_text(activation="swish"),
        config_text(activation=3),
        config_text(dropout="much"),
        config_text(dropout=float("nan")),
        config_text(dropout=2),
        config_text(places=-1),
        config_text(places=10**12),
        config_text(bars=None),
        config_text(clamp_len=-4),
        config_text(memory=-1),
        config_text(pre_norm="yes"),
        config_text(vocabulary=658),
        config_text(layers=3),
        config_text(places=90),
        config_text(untie_biases=True),
    ),
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in WRONG.items() for v in values])
def test_a_damaged_header(tmp_path, field: str, value: str) -> None:
    path = model_file(tmp_path / "m.safetensors", **{field: value})
    with pytest.raises(ModelError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("field", ["architecture", "vocabulary", "network"])
def test_a_header_without_an_entry(tmp_path, field: str) -> None:
    entries = {name: text for name, text in header().items() if name != field}
    weights.write(tmp_path / "m.safetensors", composing_kit.network().state_dict(), metadata=entries)
    with pytest.raises(ModelError):
        load(tmp_path / "m.safetensors")


def test_without_instruments_it_is_a_piano(tmp_path) -> None:
    entries = {name: text for name, text in header().items() if name != "instruments"}
    weights.write(tmp_path / "m.safetensors", composing_kit.network().state_dict(), metadata=entries)
    assert load(tmp_path / "m.safetensors").instruments.known == {0: 60.0}


def broken(change: Any) -> dict[str, torch.Tensor]:
    tensors = {name: tensor.clone() for name, tensor in composing_kit.network().state_dict().items()}
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["layers.0.out.weight"].fill_(float("nan")), "NaN"),
        (lambda t: t.pop("layers.1.query.weight"), "layers.1.query.weight"),
        (lambda t: t.update(extra=torch.zeros(3)), "extra"),
        (lambda t: t.update({"output_bias": torch.zeros(3)}), "output_bias"),
    ],
)
def test_damaged_tensors(tmp_path, change, message: str) -> None:
    save_file(broken(change), tmp_path / "m.safetensors", metadata=header())
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("content", [b"", b"no model", b"\xff" * 64, b"\x80\x04}q\x00."])
def test_no_model_at_all(tmp_path, content: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(ModelError):
        load(tmp_path / "m.safetensors")
    with pytest.raises(ModelError):
        load(tmp_path / "none.safetensors")


def test_a_file_that_is_cut_off(tmp_path) -> None:
    path = model_file(tmp_path / "m.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError):
        load(path)


def test_an_old_vocabulary_is_used_as_it_was(tmp_path) -> None:
    """A model keeps the tokens it learned, whatever the default has become since."""
    old = Vocabulary.build(Settings(tempos=8, specials=("PAD", "BOS", *Settings().specials[2:])))
    config = composing_kit.Config(len(old), layers=1, width=16, heads=2, feedforward=16)
    weights.write(tmp_path / "m.safetensors", TransformerXL(config).state_dict(), metadata=header(old, config))
    assert load(tmp_path / "m.safetensors").vocabulary.names == old.names


@pytest.mark.parametrize("settings", [Settings(tokenization="TSD"), Settings(programs=False)])
def test_models_that_cannot_write_say_so(tmp_path, settings: Settings) -> None:
    vocabulary = Vocabulary.build(settings)
    config = composing_kit.Config(len(vocabulary), layers=1, width=16, heads=2, feedforward=16)
    path = tmp_path / "m.safetensors"
    weights.write(path, TransformerXL(config).state_dict(), metadata=header(vocabulary, config))
    with pytest.raises(ModelError, match="it is for `genkit evaluate`"):
        Studio.open(path, Runtime.pick("cpu"))


def test_a_network_for_comparison_does_not_write(tmp_path) -> None:
    pytest.importorskip("transformers", reason="the GPT-2 is Hugging Face's")
    from pipelines.midi_generation.networks.gpt2 import GPT2

    path = tmp_path / "m.safetensors"
    config = composing_kit.Config(len(VOCABULARY), layers=1, width=16, heads=2, feedforward=16)
    entries = header(VOCABULARY, config, architecture="genkit.midi-generation.gpt2", context="64")
    weights.write(path, GPT2(config, context=64).state_dict(), metadata=entries)
    assert load(path).architecture == "gpt2"
    with pytest.raises(ModelError, match="trained for comparison"):
        Studio.open(path, Runtime.pick("cpu"))
    for context in ("", "-3", "many", str(10**15)):
        weights.write(path, GPT2(config, context=64).state_dict(), metadata=entries | {"context": context})
        with pytest.raises(ModelError):
            load(path)


def test_the_vocabulary_of_merges_does_not_write(tmp_path) -> None:
    lines = [VOCABULARY.encode(composing_kit.tune())] * 4
    vocabulary = VOCABULARY.with_merges(lines, len(VOCABULARY) + 5)
    config = composing_kit.Config(len(vocabulary), layers=1, width=16, heads=2, feedforward=16)
    path = tmp_path / "m.safetensors"
    weights.write(path, TransformerXL(config).state_dict(), metadata=header(vocabulary, config))
    assert json.loads(load(path).network.config.json())["vocabulary"] == len(vocabulary)
    with pytest.raises(ModelError, match="byte-pair"):
        Studio.open(path, Runtime.pick("cpu"))
