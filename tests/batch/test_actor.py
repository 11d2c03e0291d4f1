"""What makes jobs on another machine, asked here."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from genkit._version import __version__
from genkit.batch.engines import actor
from genkit.batch.engines.actor import Maker
from genkit.batch.store import Folder
from genkit.media import provenance
from genkit.media.image import Image
from genkit.media.provenance import digest_file


@pytest.fixture
def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: Any) -> Iterator[Maker]:
    import torch

    monkeypatch.setenv("GENKIT_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "out").mkdir()
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        yield Maker(Folder(tmp_path / "out"), 0, 1, [str(tmp_path), "/nowhere"], {"device": "cpu"})
    torch.set_num_threads(threads)


def test_it_says_what_keeps_it_from_making_anything(
    maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor, "SEEN", 0.3)
    (tmp_path / "probe").touch()
    assert maker.ready(__version__, tmp_path / "probe")[0] == ""
    assert maker.ready(__version__, None)[0] == ""
    assert "has genkit" in maker.ready("0.0", None)[0]
    line, _ = maker.ready(__version__, tmp_path / "out/.genkit/probe")
    assert f"does not see {tmp_path / 'out'}; give a folder that all nodes share, or a URL" in line
    (tmp_path / "out/.genkit/staging").rmdir()
    (tmp_path / "out/.genkit").rmdir()
    (tmp_path / "out/.genkit").write_text("a file where a folder should be")
    assert "cannot write to" in maker.ready(__version__, None)[0]


def test_the_runners_plugins_are_found_where_they_are_here_too(maker: Maker, tmp_path: Path) -> None:
    assert str(tmp_path) in sys.path
    assert "/nowhere" not in sys.path


def test_an_input_is_handed_over_and_the_record_names_it_as_the_runner_does(
    maker: Maker, jobs: Callable[..., Any], tmp_path: Path
) -> None:
    import torch

    path = Image.from_tensor(torch.full((3, 4, 4), 0.5)).save(tmp_path / "grey.png")
    first, second = jobs("params: {width: 4, height: 4, content: grey.png}\nmatrix: {seed: [1, 2]}")
    digest = digest_file(path)
    content = path.read_bytes()
    assert maker.prepare([first, second]) == ([1, 1], {})
    path.unlink()  # as on another machine
    assert maker.prepare([first]) == ([1], {digest: str(path)})
    (outcome,) = maker.perform([first])
    assert outcome.retry == "never"
    assert "nobody hands it over; use a shared folder" in outcome.error
    maker.hand_over([digest], content)
    (outcome,) = maker.perform([first])
    assert outcome.error == ""
    record = provenance.read(tmp_path / "out" / first.output)
    assert record is not None
    assert record.inputs["content"].path == record.params["content"] == str(path)
    assert maker.prepare([second]) == ([1], {})  # it has it now


def test_a_model_that_is_not_on_its_machine_is_named(maker: Maker, jobs: Callable[..., Any], tmp_path: Path) -> None:
    first, second = jobs("matrix: {seed: [1, 2]}\nparams: {width: 4, height: 4}")
    elsewhere = replace(first, model="/elsewhere/model.safetensors")
    outcomes = {outcome.job.output: outcome for outcome in maker.perform([elsewhere, second])}
    assert outcomes[second.output].error == ""
    assert outcomes[first.output].retry == "never"
    assert "'/elsewhere/model.safetensors' is not on node" in outcomes[first.output].error
    assert "or name a hub id" in outcomes[first.output].error
