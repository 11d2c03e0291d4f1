"""`genkit export`: whose model it is, what is refused, and a third party's network as a graph."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MODULE = '''"""A pipeline that doubles, for the tests of `genkit export`."""

from pathlib import Path

import genkit.pipeline
from genkit.weights import Model


class Doubling(genkit.pipeline.Pipeline):
    name = "test-doubling"
    Params = genkit.pipeline.Params
    models = {"twice": Model("shipped:genkit/exporting.py", "doubles", "0 MB", "CC0-1.0")}
    exports = {"onnx": "genkit_test_doubling:graph"}

    @classmethod
    def describe_model(cls, path):
        return {"is": "a doubler"} if path.suffix == ".double" else None


class Tripling(Doubling):
    name = "test-tripling"
    models = {}


class Silent(Doubling):
    name = "test-silent"
    models = {"quiet": Model("shipped:genkit/exporting.py", "leaves in no format", "0 MB", "CC0-1.0")}
    exports = {}

    @classmethod
    def describe_model(cls, path):
        return {"is": "a silent one"} if path.suffix == ".silent" else None


def graph(model):
    import torch

    import genkit
    from genkit.exporting import Axis, Graph, Value

    class Twice(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    x = Value((Axis("batch"), Axis("length", multiple=3)), "numbers")
    sizes = [{"batch": 2, "length": 6}, {"batch": 3, "length": 9}]
    source = Path(genkit.__file__)
    return Graph(Twice().eval(), {"x": x}, {"y": x}, sizes, source=source, words="a doubler", notes=["N."])
'''
ENTRIES = """[genkit.pipelines]
test-doubling = genkit_test_doubling:Doubling
test-tripling = genkit_test_doubling:Tripling
test-silent = genkit_test_doubling:Silent
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Iterator[Callable[..., Any]]:
    """run("twice", ...) -> exit status, stdout, stderr of `genkit export`, with three more pipelines installed."""
    from genkit import registry
    from genkit.cli import main

    site, work = tmp_path / "site", tmp_path / "work"
    info = site / "genkit_test_doubling-1.dist-info"
    info.mkdir(parents=True)
    work.mkdir()
    (site / "genkit_test_doubling.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: genkit-test-doubling\nVersion: 1\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.chdir(work)
    for name in ("a.double", "a.silent"):
        Path(name).write_bytes(b"weights")
    registry._entries.cache_clear()

    def call(*arguments: object) -> tuple[int, str, str]:
        status = main(["export", *map(str, arguments)])
        return status, *capsys.readouterr()

    yield call
    registry._entries.cache_clear()
    sys.modules.pop("genkit_test_doubling", None)


def test_a_third_partys_network_leaves_as_a_graph(run: Any) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    status, out, err = run("twice", "--to", "onnx")
    assert (status, out) == (0, "twice.onnx\n")
    assert "a doubler: 0.0 MB, opset 18; onnxruntime's numbers differ by 0.0e+00 at most" in err
    assert "x [batch, length] -> y [batch, length]; length in multiples of 3, at least 3" in err
    assert err.endswith("\nN.\n")
    session = onnxruntime.InferenceSession("twice.onnx")
    assert session.run(None, {"x": onnx.numpy_helper.to_array(onnx.helper.make_tensor("x", 1, [1, 3], [1, 2, 3]))})[
        0
    ].tolist() == [[2, 4, 6]]
    about = {entry.key: entry.value for entry in onnx.load("twice.onnx").metadata_props}
    assert (about["licence"], about["model"], about["length_multiple"]) == ("CC0-1.0", "twice", "3")


def test_without_a_name_nothing_is_replaced_and_with_one_the_file_is(run: Any) -> None:
    pytest.importorskip("onnx")
    Path("twice.onnx").write_bytes(b"here before")
    assert run("twice", "--no-check", "--quiet") == (0, "twice_2.onnx\n", "")
    assert Path("twice.onnx").read_bytes() == b"here before"
    status, out, _ = run("twice", "--no-check", "-o", "twice.onnx", "--json")
    told = json.loads(out)
    assert (status, told["file"], told["difference"], told["opset"]) == (0, "twice.onnx", None, 18)
    assert Path("twice.onnx").read_bytes() == Path("twice_2.onnx").read_bytes()


def test_a_files_owner_is_found_by_asking_or_said(run: Any) -> None:
    from genkit.exporting import owner

    assert owner("twice").name == "test-doubling"
    assert owner("a.double", pipeline="test-tripling").name == "test-tripling"
    status, out, err = run("a.double")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "'a.double' could be a model of test-doubling, test-tripling; say which by --pipeline NAME" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("quiet",),
            "models of test-silent have no ONNX export; what can be exported are models of image-translation, ",
        ),
        (("a.silent",), "models of test-silent have no ONNX export"),
        (("twice", "--pipeline", "test-silent"), "models of test-silent have no ONNX export"),
        (("twice", "--pipeline", "nothing"), "no pipeline is called 'nothing'"),
        (("twice", "--to", "tflite"), "'tflite' is not 'onnx'"),
        (("twice", "-o", "twice.pt"), "output 'twice.pt' does not end in .onnx; give it that suffix"),
        (("twice", "--opset", "12"), "opset 12 cannot be written; give one from 18 to 25"),
        (("twice", "-o", "a.double/twice.onnx"), "'a.double' is not a folder"),
        (("x" * 4000, "--pipeline", "test-silent"), "no ONNX export"),
        ((), "Missing argument 'MODEL'"),
    ],
)
def test_mistakes_are_one_line(run: Any, arguments: Any, message: str) -> None:
    status, out, err = run(*arguments)
    assert message in err
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert sorted(path.name for path in Path().iterdir()) == ["a.double", "a.silent"]


def test_a_missing_package_is_one_line_with_the_remedy(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from genkit import _onnx

    monkeypatch.setattr(_onnx, "find_spec", lambda name: None if name.startswith("onnx") else object())
    status, out, err = run("twice")
    assert (status, out) == (2, "")
    assert err == "genkit: ONNX needs onnx, onnxscript, onnxruntime, which are not installed; " + (
        "`pip install genkit-media[onnx]`\n"
    )


def test_help_teaches_by_examples_and_comes_without_torch(run: Any) -> None:
    status, out, _ = run("--help")
    assert status == 0
    for words in ("MODEL", "--to", "--opset", "--check / --no-check", "genkit export noto-to-blob --to onnx"):
        assert words in out
    code = "import sys; from genkit.cli import main; main(['export', '--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_models_are_completed(run: Any) -> None:
    from genkit.cli.export import _complete

    assert [item.value for item in _complete(None, None, "tw")] == ["twice"]  # type: ignore[arg-type]
    assert [item.type for item in _complete(None, None, "lat")] == ["file"]  # type: ignore[arg-type]
