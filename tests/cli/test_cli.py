"""The command line: data on stdout, one line and a status for each failure, nothing half-written.

Most tests call `main` in this process, which is what the console script calls; a few start it for real.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import click
import PIL.Image
import pytest
import torch
import yaml
from safetensors.torch import save_file

import genkit
from genkit.cli import _checks, _common, _report, cli, commands, main

pytestmark = pytest.mark.usefixtures("noise_pipeline", "workplace")


class Done(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capfd):
    def call(*arguments: str) -> Done:
        status = main(list(arguments))
        return Done(status, *capfd.readouterr())

    return call


def started(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "genkit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


# ---------------------------------------------------------------------------------------------------- help and lists


def test_help_lists_pipelines_and_commands_with_a_line_each(run):
    done = run("--help")
    assert done.status == 0
    pipelines, rest = done.out.split("Commands:")
    assert re.search(r"^  test-noise\s+Pipelines small enough", pipelines, re.MULTILINE)
    for name in commands():
        assert re.search(rf"^  {name}\s+\S", rest, re.MULTILINE), f"{name} has no summary"
    assert run("-h").out == done.out


def test_version(run):
    assert run("--version").out.strip().endswith(genkit.__version__)


def test_no_arguments_show_the_help_and_fail(run):
    done = run()
    assert done.status == 2
    assert done.out == ""
    assert "Usage: genkit" in done.err


def test_every_command_explains_itself(run):
    for name in [*commands(), "test-noise"]:
        done = run(name, "--help")
        assert done.status == 0
        assert f"Usage: genkit {name}" in done.out
        assert "--debug" in done.out or name in ("recipes",)


def test_the_help_of_a_pipeline_teaches(run):
    text = " ".join(run("test-noise", "--help").out.split())
    assert "--width N Width of the picture. [1 to 4096 px; default: 32]" in text
    assert "--content PICTURE A picture that the noise is blended with." in text
    assert "--seed SEED Makes the result repeatable" in text
    assert "Output and device: -m, --model MODEL" in text
    assert "Examples: genkit test-noise --seed 7 -o out.png" in text


def test_the_example_of_a_help_runs(run):
    line = next(line for line in run("test-noise", "--help").out.splitlines() if line.startswith("  genkit "))
    assert run(*line.split()[1:]).status == 0
    assert Path("out.png").exists()


def test_list(run):
    rows = [line.split("\t") for line in run("list").out.splitlines()]
    assert ["test-noise", "Pipelines small enough for any test: seeded noise, a tone, a tune."] in [r[:2] for r in rows]
    names = [row["name"] for row in json.loads(run("list", "--json").out)]
    assert names == genkit.pipelines()


def test_models(run):
    rows = json.loads(run("models", "--json").out)
    for row in rows:
        assert set(row) == {
            "model", "pipeline", "default", "size", "licence", "needs", "source", "here", "summary"
        }  # fmt: skip
        assert row["licence"]
        assert row["size"]
    assert len(run("models").out.splitlines()) == len(rows)
    assert run("models", "test-noise").out == ""
    assert run("models", "test-noize").lines == [
        "genkit: no pipeline is called 'test-noize': did you mean 'test-noise'?"
    ]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_asks_genkit(run, shell):
    assert "_GENKIT_COMPLETE" in run("completion", shell).out


def test_completion_answers_with_pipelines_commands_and_flags():
    def complete(words: str, index: int) -> str:
        environment = {**os.environ, "_GENKIT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(index)}
        code = "import sys; from genkit.cli import main; sys.exit(main())"
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
        return done.stdout

    assert "plain,test-noise" in complete("genkit te", 1)
    assert "plain,doctor" in complete("genkit d", 1)
    assert "plain,--strength" in complete("genkit test-noise --str", 2)


# ------------------------------------------------------------------------------------------------------- generating


def test_a_run_writes_the_file_and_prints_its_path(run):
    done = run("test-noise", "--seed", "3", "--width", "8", "--height", "9", "-o", "a.png")
    assert (done.status, done.out) == (0, "a.png\n")
    with PIL.Image.open("a.png") as picture:
        assert picture.size == (8, 9)


def test_the_command_line_makes_what_python_makes(run):
    run("test-noise", "--seed", "3", "-o", "a.png")
    genkit.load("test-noise", device="cpu")(seed=3).save("b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_json_tells_files_seeds_and_info(run):
    done = run("test-noise", "--count", "2", "--seed", "3", "--json", "-o", "a.png")
    assert json.loads(done.out) == {"files": ["a-1.png", "a-2.png"], "seeds": [3, 4], "info": {}}


def test_without_a_name_nothing_is_replaced(run):
    names = [run("test-noise", "--seed", "3").out for _ in range(3)]
    assert names == ["test-noise-3.png\n", "test-noise-3_2.png\n", "test-noise-3_3.png\n"]
    assert run("test-tone", "--seed", "3").out == "test-tone-3.wav\n"
    assert run("test-tune", "--seed", "3").out == "test-tune-3.mid\n"


def test_a_folder_takes_a_file_of_our_own_name(run):
    Path("folder").mkdir()
    assert run("test-noise", "--seed", "3", "-o", "folder").out == "folder/test-noise-3.png\n"
    assert run("test-noise", "--seed", "3", "-o", "new/").out == "new/test-noise-3.png\n"


def test_a_named_file_is_replaced(run):
    run("test-noise", "--seed", "3", "-o", "a.png")
    before = Path("a.png").read_bytes()
    run("test-noise", "--seed", "4", "-o", "a.png")
    assert Path("a.png").read_bytes() != before
    assert [path.name for path in Path().iterdir()] == ["a.png"]


def test_a_drawn_seed_is_told_and_makes_it_again(run):
    done = run("test-noise", "-o", "a.png")
    seed = re.search(r"seed (\d+)", done.err)[1]
    run("test-noise", "--seed", seed, "-o", "b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_quiet_is_quiet(run):
    done = run("test-noise", "-q", "-o", "a.png")
    assert (done.out, done.err) == ("a.png\n", "")


def test_the_recipe_that_is_shown_names_the_same_parameters(run):
    done = run("test-noise", "--count", "2", "--seed", "5", "--strength", "0.25", "--show-recipe", "-o", "d/a.png")
    assert yaml.safe_load(done.out) == {
        "pipeline": "test-noise",
        "params": {"seed": 5, "count": 2, "strength": 0.25},
        "output": "a.png",
    }
    assert list(Path().iterdir()) == []


def test_the_recipe_that_is_shown_makes_the_same_picture(run):
    run("test-noise", "--seed", "5", "--width", "8", "-o", "a.png")
    Path("r.yaml").write_text(run("test-noise", "--seed", "5", "--width", "8", "-o", "a.png", "--show-recipe").out)
    assert run("run", "r.yaml", "--out", "made").status == 0
    with PIL.Image.open("a.png") as one, PIL.Image.open(next(Path("made").rglob("a.png"))) as two:
        assert one.tobytes() == two.tobytes()


def test_progress_is_a_line_now_and_then_where_stderr_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(_common, "LINE_EVERY", 0.0)
    with _common.progress_bar("test-noise") as progress:
        progress(1, 2, note="half")
        progress(2, 2)
    assert capsys.readouterr().err == "test-noise: 1 of 2 (half)\ntest-noise: 2 of 2\n"


def test_progress_is_a_bar_where_stderr_is_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with _common.progress_bar("[bold]odd[/name]") as progress:
        progress(1, 2, note="[half]")
    assert "[bold]odd[/name]" in sys.stderr.getvalue()


# -------------------------------------------------------------------------------------------------------- bad input


def test_a_folder_and_a_pipe_and_a_missing_file(run, workplace):
    os.mkfifo("pipe")
    for value, message in [
        ("none.png", "'none.png' does not exist; check the path"),
        (".", "'.' is a folder; name one file"),
        ("pipe", "'pipe' is no ordinary file (a pipe or a device)"),
    ]:
        done = run("test-noise", "--content", value)
        assert done.status == 2
        assert len(done.lines) == 1
        assert f"genkit: content {message}" in done.err


BAD = [
    (["--width", "-1"], "width '-1' is out of range: it must be 1 to 4096 px"),
    (["--width", "0"], "width '0' is out of range"),
    (["--width", "65536"], "width '65536' is out of range"),
    (["--width", "wide"], "width 'wide' is not a whole number"),
    (["--width", "1e3"], "width '1e3' is not a whole number"),
    (["--count", "1000000"], "count '1000000' is out of range: it must be 1 to 8"),
    (["--strength", "nan"], "strength 'nan' is not a finite number"),
    (["--strength", "inf"], "strength 'inf' is not a finite number"),
    (["--seed", str(2**64)], f"seed '{2**64}' is out of range"),
    (["--seed", "-1"], "seed '-1' is out of range"),
    (["--seed", "9" * 10_000], "is not a whole number"),
    (["--content", "\u202egnp.x"], "does not exist"),
    (["--content", "x" * 2**16], "cannot be read"),
    (["--widht", "3"], "Did you mean"),
    (["--width"], "requires an argument"),
    (["stray"], "unexpected extra argument"),
    (["--device", "cuda:77"], "device 'cuda:77' is not there; this machine has"),
    (["--device", "gpu"], "no device is called 'gpu'"),
    (["--dtype", "float7"], "no dtype is called 'float7'"),
    (["-o", "a.wav"], "does not fit"),
    (["-o", "a"], "suffix"),
    (["-o", "x" * 300 + ".png"], "long"),
    (["-o", "/proc/none/a.png"], "/proc/none"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD, ids=[" ".join(a)[:30].encode("ascii", "replace") for a, _ in BAD]
)
def test_a_mistake_is_one_line_a_status_and_no_file(run, arguments, message, workplace):
    done = run("test-noise", *arguments)
    assert done.status == (1 if "--device" in arguments else 2)
    assert done.out == ""
    assert len(done.lines) == 1
    assert done.err.startswith("genkit: ")
    assert done.err.rstrip("\n").isprintable()
    assert len(done.err) < 1000
    assert message in done.err
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["test-noize"], "no command or pipeline is called 'test-noize': did you mean 'test-noise'?"),
        (["docter"], "did you mean 'doctor'?"),
        (["zzzzzzzz"], "`genkit --help` lists what there is"),
        (["foxes.yaml"], "to run a recipe: genkit run foxes.yaml"),
        (["--nonsense"], "--nonsense"),
        (["completion", "csh"], "'csh' is not one of 'bash', 'zsh', 'fish'"),
    ],
)
def test_an_unknown_command_is_told_the_nearest(run, arguments, message):
    done = run(*arguments)
    assert done.status == 2
    assert len(done.lines) == 1
    assert message in done.err


def test_a_megabyte_of_argument_is_answered_in_a_line():
    done = started("test-noise", "--seed", "x" * 100_000)  # the kernel's own limit is 128 KB
    assert done.returncode == 2
    assert len(done.stderr) < 500


# ------------------------------------------------------------------------------------------------------- bad models


@pytest.fixture
def fitted(tmp_path, monkeypatch):
    """A pipeline with one linear layer that is loaded from a file."""
    source = '''"""One layer."""
from genkit.pipeline import Output, Params, Pipeline

class Layer(Pipeline):
    name = "test-layer"
    Params = Params

    @classmethod
    def load(cls, model, runtime):
        import torch
        from genkit import weights
        path = weights.locate(model, cls.models)
        module = torch.nn.Linear(2, 3)
        weights.load_into(module, weights.read(path), name=str(model))
        return cls(model, runtime)

    def run(self, batch, progress):
        import torch
        from genkit.media.image import Image
        return [Output(images=[Image.from_tensor(torch.zeros(3, 2, 2))]) for _ in batch]
'''
    from genkit import registry

    (place := tmp_path.parent / f"{tmp_path.name}-packages").mkdir()
    (place / "test_layer.py").write_text(source)
    (info := place / "test_layer-1.dist-info").mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: test-layer\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[genkit.pipelines]\ntest-layer = test_layer:Layer\n")
    monkeypatch.syspath_prepend(str(place))
    registry._entries.cache_clear()
    yield "test-layer"
    registry._entries.cache_clear()
    sys.modules.pop("test_layer", None)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evidence",)


def _models() -> dict[str, tuple[bytes, str]]:
    def packed(tensors: dict[str, torch.Tensor]) -> bytes:
        save_file(tensors, "temporary")
        content = Path("temporary").read_bytes()
        Path("temporary").unlink()
        return content

    def pickled(value: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return buffer.getvalue()

    good = {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}
    overlap = (
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}'
    )
    return {
        "pickle.pth": (pickled(Payload()), "holds more than tensors"),
        "raw.pkl": (pickle.dumps(Payload()), "is damaged|holds more than tensors"),
        "huge.safetensors": ((2**62).to_bytes(8, "little") + b"{}", "is damaged"),
        "overlap.safetensors": (len(overlap).to_bytes(8, "little") + overlap + bytes(12), "overlaps another"),
        "short.safetensors": (packed(good)[:-5], "cut short"),
        "missing.safetensors": (packed({"weight": good["weight"]}), r"1 missing \(bias\)"),
        "shape.safetensors": (packed({**good, "bias": torch.zeros(4)}), r"bias \[4\] for \[3\]"),
        "lora.safetensors": (packed({"lora_unet_a.lora_down.weight": torch.ones(1)}), "it looks like a LoRA"),
        "nan.safetensors": (packed({**good, "bias": torch.full((3,), float("nan"))}), "tensor 'bias' holds NaN"),
        "empty.pth": (b"", "it is empty"),
    }


@pytest.mark.parametrize(
    "name",
    ["pickle.pth", "raw.pkl", "huge.safetensors", "overlap.safetensors", "short.safetensors", "missing.safetensors",
     "shape.safetensors", "lora.safetensors", "nan.safetensors", "empty.pth"],
)  # fmt: skip
def test_a_bad_model_is_one_line_and_makes_nothing(run, fitted, name, workplace):
    content, message = _models()[name]
    (workplace / name).write_bytes(content)
    done = run(fitted, "--model", name, "-o", "out.png")
    assert done.status == 2
    assert len(done.lines) == 1
    assert name in done.err
    assert re.search(message, done.err)
    assert [path.name for path in workplace.iterdir()] == [name]  # no picture, no evidence


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("none.safetensors", "does not exist; check the path"),
        ("org/none", "offline mode is on"),
        ("nothing", "a hub id has the form org/name"),
        (".", "holds no model"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(run, fitted, model, message, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = run(fitted, "--model", model, "-o", "out.png")
    assert done.status == 2
    assert len(done.lines) == 1
    assert message in done.err


def test_a_good_model_runs(run, fitted):
    save_file({"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, "good.safetensors")
    assert run(fitted, "--model", "good.safetensors", "-o", "out.png").status == 0


# --------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (click.Abort(), 130, "stopped"),
        (MemoryError(), 1, "out of memory"),
        (OSError(28, "No space left on device", "x.png"), 4, "no space left"),
        (PermissionError(13, "Permission denied", "x.png"), 1, "x.png: Permission denied"),
        (genkit.ModelError("model x is\nbroken"), 2, "model x is broken"),
    ],
)
def test_every_kind_of_failure_has_its_status(capsys, error, status, line):
    assert _report(error) == status
    assert capsys.readouterr().err.startswith(f"genkit: {line}")


def test_a_fault_of_our_own_is_one_line_and_debug_shows_where(run, monkeypatch):
    from genkit import registry

    def broken() -> list[str]:
        raise TypeError("two\nlines")

    monkeypatch.setattr(registry, "pipelines", broken)
    done = run("list")
    assert done.status == 1
    assert len(done.lines) == 1
    assert re.search(r"a fault in genkit: TypeError: two lines \(test_cli.py:\d+\)", done.err)
    assert "Traceback" in run("--debug", "list").err
    monkeypatch.setenv("GENKIT_DEBUG", "1")
    assert "Traceback" in run("list").err


def test_a_closed_pipe_is_no_traceback():
    command = f"{sys.executable} -m genkit list --json | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_with_its_status_and_leaves_nothing(workplace, number, status):
    code = (
        "import sys, os, signal, time; from genkit.cli import main; from genkit import registry\n"
        "from genkit.media.files import atomic_write\n"
        "def slow():\n"
        "    atomic_write('x.png', lambda p: (p.write_bytes(b'1'), print('ready', flush=True), time.sleep(30)))\n"
        "registry.pipelines = slow\n"
        "sys.exit(main(['list']))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        assert child.wait(20) == status
    assert list(workplace.iterdir()) == []


def test_two_flags_of_one_name_are_refused(monkeypatch):
    from pydantic import Field

    from genkit.cli._generate import command_for
    from genkit.errors import GenkitError
    from genkit.pipeline import Params
    from genkit.registry import get

    class Clash(Params):
        device: str = Field("", description="")

    monkeypatch.setattr(get("test-noise"), "Params", Clash)
    with pytest.raises(GenkitError, match="common flag --device; rename it"):
        command_for("test-noise")


def test_flags_of_every_type_are_made_and_parsed():
    import enum
    from typing import Annotated, Literal

    from pydantic import Field

    from genkit.cli import _flags
    from genkit.fields import Hint, Slider
    from genkit.pipeline import Params

    class Look(enum.StrEnum):
        NOTO = "noto"
        BLOB = "blob"

    class Rich(Params):
        look: Look = Field(Look.NOTO, description="The look.")
        scale: Literal[1, 2, 4] = 1
        tiled: bool = Field(True, description="In tiles.")
        weights: list[float] = Field([], description="One each.")
        how: Annotated[float, Slider(0, 1, "%"), Hint(short="w", section="advanced")] | None = None

    options = {option.name: option for option in _flags.options(Rich, set())}
    command = click.Command("rich", params=list(options.values()), callback=lambda **values: values)

    def parse(*arguments: str) -> dict[str, Any]:
        values = command.main(list(arguments), standalone_mode=False)
        return Rich.parse(_flags.given(Rich, values)).model_dump(exclude_unset=True)

    assert parse() == {}
    assert parse("--look", "blob", "--scale", "4", "--no-tiled") == {"look": "blob", "scale": 4, "tiled": False}
    assert parse("--weights", "1", "--weights", "2.5", "-w", "0.5") == {"weights": [1.0, 2.5], "how": 0.5}
    with pytest.raises(genkit.InputError, match="look 'blop' is not known: did you mean 'blob'"):
        parse("--look", "blop")
    assert options["param_how"].section == "advanced"
    context = click.Context(command)
    record = options["param_look"].get_help_record(context)
    assert record == ("--look noto|blob", "The look. [default: noto]")
    assert options["param_tiled"].get_help_record(context) == ("--tiled / --no-tiled", "In tiles. [default: on]")


# ----------------------------------------------------------------------------------------------------------- doctor


def test_the_doctor_sees_this_machine(run):
    found = {check["name"]: check for check in json.loads(run("doctor", "--json").out)}
    for name in ("python", "torch", "torchaudio", "torchvision", "soundfont", "test-noise"):
        assert found[name]["state"] == "good", found[name]
    assert "cpu" in found["device"]["says"]
    assert "pip install" in found["gradio"]["says"] or found["gradio"]["state"] == "good"


@pytest.mark.parametrize(
    ("versions", "problem"),
    [
        ({"torch": "2.14.1", "torchaudio": "2.11.0", "torchvision": "0.29.2"}, None),
        ({"torch": "2.11.0+cpu", "torchaudio": "2.11.0+cpu", "torchvision": "0.26.0+cpu"}, None),
        ({"torch": "2.15.0", "torchaudio": "2.11.0", "torchvision": "0.30.0"}, "outside 2.11 to 2.14"),
        ({"torch": "2.14.1", "torchaudio": "2.11.0", "torchvision": "0.26.0"}, "pip install 'torchvision==0.29.*'"),
        ({"torch": "2.14.1", "torchaudio": "2.10.0", "torchvision": "0.29.0"}, "is not 2.11"),
        ({"torch": "2.14.1+cpu", "torchaudio": "2.11.0", "torchvision": "0.29.2+cpu"}, "the builds differ"),
        ({}, None),
    ],
)
def test_versions_that_do_not_fit_are_said_in_words(versions, problem):
    found = _checks.fit(versions)
    assert (found == []) if problem is None else any(problem in line for line in found)


def test_the_doctor_finds_a_torchaudio_that_does_not_import(workplace):
    """What a torchaudio of another CUDA really does: it is installed, and its import raises OSError."""
    (workplace / "torchaudio").mkdir()
    (workplace / "torchaudio" / "__init__.py").write_text(
        "raise OSError('libtorchaudio.so: undefined symbol: _ZN3c10')"
    )
    path = os.pathsep.join([str(workplace), os.environ.get("PYTHONPATH", "")])
    done = started("doctor", env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 1
    line = next(line for line in done.stdout.splitlines() if "torchaudio" in line)
    assert line.startswith("BAD")
    assert "undefined symbol" in line
    assert "pip install --force-reinstall genkit-media" in line


def test_the_doctor_finds_another_owner_of_our_names(workplace, monkeypatch, run):
    (info := workplace / "genkit-0.5.dist-info").mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: genkit\nVersion: 0.5\n")
    (info / "RECORD").write_text("genkit/__init__.py,,\ngenkit/ai.py,,\n")
    monkeypatch.syspath_prepend(str(workplace))
    done = run("doctor")
    assert done.status == 1
    assert "BAD  genkit: the package 'genkit' also belongs to genkit; the two cannot share" in done.out
    assert "pip uninstall genkit" in done.out


def test_the_group_is_importable_for_documentation():
    assert isinstance(cli, click.Group)


def test_debug_may_stand_behind_the_command(run, fitted):
    done = run(fitted, "--model", "none.safetensors", "--debug")
    assert done.status == 2
    assert "Traceback" in done.err
    assert done.lines[-1] == "genkit: model 'none.safetensors' does not exist; check the path"
