"""Files that the tests of style transfer begin from, made once; and the command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import style_kit


class Files(NamedTuple):
    """Two photos, two paintings, and a tiny model for each method."""

    content: Path
    portrait: Path
    style: Path
    other: Path
    small: Path
    fast: Path
    adain: Path


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    home = tmp_path_factory.mktemp("style")
    return Files(
        content=style_kit.save(home / "content.png", 40, 52, 1),
        portrait=style_kit.save(home / "portrait.png", 61, 33, 2),
        style=style_kit.save(home / "style.png", 48, 44, 3),
        other=style_kit.save(home / "other.png", 36, 50, 4),
        small=style_kit.small_file(home / "tiny-small.safetensors"),
        fast=style_kit.fast_file(home / "tiny-fast.safetensors"),
        adain=style_kit.adain_folder(home / "tiny-adain"),
    )


class Done(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """run("style-transfer", ...) -> status, stdout, stderr: what the console script does, in this process."""
    from genkit.cli import main

    def call(*arguments: Any) -> Done:
        status = main([str(argument) for argument in arguments])
        return Done(status, *capfd.readouterr())

    return call
