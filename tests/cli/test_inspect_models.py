"""`genkit inspect MODEL` asks every pipeline what a file of tensors is, and says it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from genkit import registry, weights
from genkit.cli import main
from genkit.errors import ModelError

Said = tuple[int, str, str]


@pytest.fixture
def inspect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Said:
        status = main(["inspect", *arguments])
        return (status, *capfd.readouterr())

    return call


@pytest.fixture
def known(noise_pipeline: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Makes the third party's pipeline answer as told: with a value, or by raising it."""

    def answer(value: Any) -> None:
        def describe_model(cls: type, path: Path) -> Any:
            if isinstance(value, Exception):
                raise value
            return value

        monkeypatch.setattr(registry.get(noise_pipeline), "describe_model", classmethod(describe_model))

    return answer


def test_what_a_pipeline_says_of_a_model_is_printed_and_given_as_json(inspect, known):
    torch.save({"a.weight": torch.zeros(3, 2), "a.bias": torch.zeros(2).half()}, "a.pth")
    said = {"is": "a toy network", "parameters": 12345, "training": {"steps": 5, "names": ["x"]}}
    known(said)
    status, out, err = inspect("a.pth")
    assert (status, err) == (0, "")
    lines = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in out.splitlines())}
    assert lines["model of"] == "test-noise"
    assert (lines["parameters"], lines["training"]) == ("12,345", 'steps 5, names ["x"]')
    assert "is:         a toy network" in out
    assert "2 tensors, 8 values (float16, float32)" in out
    status, out, _ = inspect("a.pth", "--json")
    facts = json.loads(out)
    assert facts["pipelines"] == {"test-noise": said}
    assert (facts["kind"], facts["tensors"], facts["values"]) == ("model", 2, 8)
    assert facts["content"] == weights.digest("a.pth")


def test_of_an_unknown_model_it_says_who_was_asked_and_what_they_answered(inspect, known):
    torch.save({"a.weight": torch.zeros(3, 2)}, "a.pth")
    known(ModelError("a.pth is no toy: it has no wheels"))
    status, out, _ = inspect("a.pth")
    assert status == 0
    assert "no pipeline installed; these were asked" in out
    asked = {line.split(":")[0].strip() for line in out.splitlines() if line.startswith("  ")}
    assert asked == set(registry.pipelines())
    assert "it has no wheels" in out


def test_a_family_that_is_known_by_its_names_is_said(inspect):
    torch.save({"word_emb.weight": torch.zeros(3, 2)}, "a.pth")
    assert "it looks like a Transformer-XL" in inspect("a.pth")[1]


def test_an_alias_is_looked_up_and_a_nearly_right_one_is_suggested(inspect):
    status, out, _ = inspect("starry-night")
    assert status == 0
    assert "transformation network (fast), 16 channels" in out
    status, out, err = inspect("stary-night")
    assert (status, out) == (2, "")
    assert err == "genkit: no file or model is called 'stary-night': did you mean 'starry-night'?\n"


@pytest.mark.parametrize(
    ("alias", "says"),
    [
        ("small", "feature network, genkit's own"),
        ("lieder", "transformer-xl network"),
        ("speech-16k", "to 16000 Hz"),
    ],
)
def test_every_pipeline_knows_what_it_ships(inspect, alias, says):
    status, out, err = inspect(alias)
    assert (status, err) == (0, "")
    assert says in out


def test_a_model_that_was_never_fetched_is_not_fetched(inspect, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    status, out, err = inspect("vgg19")
    assert (status, out) == (2, "")
    assert err == "genkit: model 'vgg19' is not on this machine yet; the first run with it fetches it\n"


def test_a_damaged_model_or_a_folder_without_one_is_one_line(inspect, tmp_path):
    weights.write(tmp_path / "a.safetensors", {"a": torch.zeros(100)})
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-8])
    (tmp_path / "empty").mkdir()
    (tmp_path / "c.pth").write_bytes(b"")
    for name in ("b.safetensors", "empty", "c.pth", "missing.pth"):
        status, out, err = inspect(name)
        assert (status, out) == (2, ""), name
        assert err.count("\n") == 1
        assert name in err


def test_a_folder_is_asked_about_as_one_model(inspect, known, tmp_path):
    (tmp_path / "model").mkdir()
    torch.save({"a": torch.zeros(1)}, "model/one.pth")
    known({"is": "a folder of toys"})
    status, out, _ = inspect("model")
    assert status == 0
    assert "a folder of toys" in out
    assert f"sha256 {weights.digest('model').removeprefix('sha256:')}" in out
