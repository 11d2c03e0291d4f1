"""A pipeline of somebody else's: a package with nothing but an entry point, installed by pip, is all it takes.

Built with hatchling, offline and without build isolation, so hatchling must be in the environment of the tests.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "somebodys-stripes"
version = "1.2"
dependencies = ["genkit-media"]

[project.entry-points."genkit.pipelines"]
stripes = "somebodys_stripes:Stripes"

[tool.hatch.build.targets.wheel]
only-include = ["somebodys_stripes.py"]
"""

MODULE = '''"""Stripes of two greys, by somebody else."""

from typing import Annotated

from pydantic import Field

from genkit.fields import Hint, Pixels
from genkit.pipeline import Output, Params, Pipeline


class StripesParams(Params):
    size: Annotated[int, Pixels(4, 256), Hint(short="s")] = Field(16, description="Side of the picture.")
    period: Annotated[int, Hint(section="pattern")] = Field(4, ge=2, le=64, description="Distance of the stripes.")


class Stripes(Pipeline):
    name = "stripes"
    Params = StripesParams
    examples = ("genkit stripes --period 8 -o stripes.png",)

    def run(self, batch, progress):
        import torch

        from genkit.media.image import Image

        outputs = []
        for step, params in enumerate(batch, 1):
            row = (torch.arange(params.size) + params.seed) % params.period < params.period / 2
            outputs.append(Output(images=[Image.from_tensor(row.float().expand(3, params.size, params.size))]))
            progress(step, len(batch))
        return outputs
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder that pip installed the package into."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "somebodys_stripes.py").write_text(MODULE)
    if importlib.util.find_spec("hatchling") is None or importlib.util.find_spec("pip") is None:
        pytest.skip("needs hatchling and pip in this environment (the extra `test` has hatchling)")
    command = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *command, "--target", str(target), str(source)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def genkit(installed, tmp_path):
    """Runs the command line in a fresh interpreter that has the package."""
    path = os.pathsep.join(filter(None, [str(installed), os.environ.get("PYTHONPATH")]))

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "genkit", *arguments],
            capture_output=True, text=True, timeout=60, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, "COLUMNS": "100"},
        )  # fmt: skip

    return call


def test_it_is_listed_with_its_package(genkit):
    rows = {row["name"]: row for row in json.loads(genkit("list", "--json").stdout)}
    assert rows["stripes"] == {
        "name": "stripes",
        "summary": "Stripes of two greys, by somebody else.",
        "package": "somebodys-stripes 1.2",
    }
    assert "stripes" in genkit("--help").stdout


def test_its_help_is_made_from_its_parameters(genkit):
    text = genkit("stripes", "--help").stdout
    assert "-s, --size N" in text
    assert "Side of the picture. [4 to 256 px; default: 16]" in text
    assert text.index("Parameters:") < text.index("Pattern:") < text.index("--period N")
    assert "genkit stripes --period 8 -o stripes.png" in text


def test_it_runs_and_its_files_remember_how_they_were_made(genkit, tmp_path):
    from genkit.media import provenance

    done = genkit("stripes", "-s", "32", "--period", "8", "--seed", "3", "-o", "a.png")
    assert (done.returncode, done.stdout, done.stderr) == (0, "a.png\n", "")
    with PIL.Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (32, 32)
        assert {colour for _, colour in picture.getcolors()} == {(0, 0, 0), (255, 255, 255)}
    record = provenance.read(tmp_path / "a.png")
    assert record is not None
    assert record.pipeline == "stripes"
    assert record.params == {"seed": 3, "size": 32, "period": 8}


def test_its_mistakes_read_like_everybody_elses(genkit):
    done = genkit("stripes", "--size", "1")
    assert done.returncode == 2
    assert done.stderr == "genkit: size '1' is out of range: it must be 4 to 256 px\n"


def test_a_recipe_may_name_it(genkit, tmp_path):
    (tmp_path / "stripes.yaml").write_text(
        'pipeline: stripes\nmatrix:\n  period: [4, 8]\n  seed: [1, 2]\noutput: "{period}-{seed}.png"\n'
    )
    done = genkit("run", "stripes.yaml", "--out", "made")
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "made").glob("*.png"))
    assert names == ["4-1.png", "4-2.png", "8-1.png", "8-2.png", "grid.png"]  # a matrix is also drawn as one picture


def test_a_misspelt_parameter_in_a_recipe_is_told_the_nearest(genkit, tmp_path):
    (tmp_path / "bad.yaml").write_text("pipeline: stripes\nparams:\n  perod: 4\n")
    done = genkit("run", "bad.yaml")
    assert done.returncode == 2
    assert "period" in done.stderr
    assert len(done.stderr.splitlines()) == 1
