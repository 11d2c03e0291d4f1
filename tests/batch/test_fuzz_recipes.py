"""Recipes by the thousand: drawn ones plan, always to the same jobs; damaged ones are refused in one line."""

from __future__ import annotations

import csv
import io
import json
import tempfile
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fuzz_kit
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genkit.batch import plan, recipe
from genkit.batch.job import Job
from genkit.batch.planning import names
from genkit.batch.planning.template import shown

PARAMS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "test-noise": {
        "seed": st.integers(0, 2**53 - 1),
        "width": st.integers(1, 4096),
        "height": st.integers(1, 4096),
        "strength": st.floats(0, 1, allow_subnormal=False),
    },
    "test-tone": {"seed": st.integers(0, 2**53 - 1), "pitch": st.floats(20, 5000) | st.integers(20, 5000)},
    "test-tune": {"seed": st.integers(0, 2**53 - 1)},
    "test-flaky": {"seed": st.integers(0, 2**53 - 1), "sleep": st.floats(0, 1, allow_subnormal=False)},
}
SUFFIX = {"test-noise": ".png", "test-tone": ".flac", "test-tune": ".mid", "test-flaky": ".jpg"}
FILE = {"test-noise": "content", "test-tone": "source"}  # the parameter that takes a file
VARIABLES = ("animal", "look", "größe", "a-b", "_x")
# What YAML can hold between quotes; braces and wildcards mean something, and are drawn on purpose.
WORDS = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Cn"), exclude_characters="{}|_\u2028\u2029\ufeff\ufffe\uffff"),
    max_size=12,
)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = WORDS | st.integers(-(10**20), 10**20) | st.booleans() | st.none() | FLOATS
CHOICES = st.sampled_from(("{red|blue}", "a {x|y|z} {1|}", "__look__", "__look__ and {a|__look__}"))


@dataclass
class Drawn:
    """A recipe as values, the files beside it, and what is said with --set."""

    value: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)

    def at(self, root: Path) -> Path:
        for name, data in self.files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
        return root


@st.composite
def stages(draw: st.DrawFn, files: dict[str, bytes], earlier: list[dict[str, Any]]) -> dict[str, Any]:
    """One stage: each parameter and variable in one of the places where it can stand."""
    pipeline = draw(st.sampled_from(sorted(PARAMS)))
    params = PARAMS[pipeline]
    stage: dict[str, Any] = {"pipeline": pipeline, "name": f"stage-{len(earlier)}"}
    places: dict[str, dict[str, list[Any]]] = {"matrix": {}, "zip": {}, "rows": {}}
    given_params: dict[str, Any] = {}
    length = draw(st.integers(1, 3))  # of zips and tables
    variables = draw(st.lists(st.sampled_from(VARIABLES), unique=True, max_size=3))
    for name in [*draw(st.lists(st.sampled_from(sorted(params)), unique=True)), *variables]:
        values = params.get(name, VALUES)
        place = draw(st.sampled_from(("matrix", "zip", "rows", *(("params",) if name in params else ()))))
        if place == "params":
            given_params[name] = draw(values)
        else:
            count = draw(st.integers(1, 3)) if place == "matrix" else length
            unique = shown if place == "matrix" else None  # `exclude` tells values apart by how they are shown
            places[place][name] = draw(st.lists(values, min_size=count, max_size=count, unique_by=unique))
    stage |= {key: places[key] for key in ("matrix", "zip") if places[key]}
    if places["rows"]:
        stage["rows"] = _rows(draw, places["rows"], length, files, len(earlier))
    if pipeline in FILE:
        _input(draw, stage, FILE[pipeline], files, earlier)
    if pipeline == "test-flaky":
        text = "".join(f"{{{name}}} " for name in variables) + draw(WORDS)
        if draw(st.booleans()):
            text += draw(CHOICES)
            stage["choices"] = draw(st.sampled_from(("all", "random")))
            files["wildcards/look.txt"] = b"sunny\n# none\n\n{bright|dark}\n"
        given_params["fail"] = text
    if given_params:
        stage["params"] = given_params
    varying = [*places["matrix"], *places["zip"], *places["rows"]]
    if draw(st.booleans()) and places["matrix"]:
        some = draw(st.sampled_from(sorted(places["matrix"])))
        stage["exclude"] = [{some: places["matrix"][some][0]}] if len(places["matrix"][some]) > 1 else []
        stage["include"] = [{name: places["matrix"][name][-1] for name in sorted(places["matrix"])}]
    if varying and draw(st.booleans()):
        stage["grid"] = {"x": draw(st.sampled_from(varying))}
    names_ = "-".join(f"{{{name}}}" for name in draw(st.permutations(varying)))
    stage["output"] = f"{{stage}}/{{index:03}}-x{names_}-y{SUFFIX[pipeline]}"
    if pipeline == "test-tune" and draw(st.booleans()):
        stage["render"] = draw(st.sampled_from((["wav"], ["png", "sound/{stage}-{stem}.flac"], ["png"])))
    return stage


def _rows(draw: st.DrawFn, columns: dict[str, list[Any]], length: int, files: dict[str, bytes], number: int) -> Any:
    """A table within the recipe, or as CSV or JSONL beside it."""
    rows = [{name: values[i] for name, values in columns.items()} for i in range(length)]
    form = draw(st.sampled_from(("inline", "csv", "jsonl")))
    if form == "inline":
        return rows
    if form == "jsonl":
        files[f"rows{number}.jsonl"] = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
        return f"rows{number}.jsonl"
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in rows:
        # An empty cell leaves its variable unset, and then no template can name it.
        writer.writerow(["-" if value in (None, "") else value for value in row.values()])
    files[f"rows{number}.csv"] = text.getvalue().encode()
    return f"rows{number}.csv"


def _input(draw: st.DrawFn, stage: dict[str, Any], key: str, files: dict[str, bytes], earlier: list[Any]) -> None:
    """Nothing, a file of the recipe's, a pattern, or an earlier stage of the same kind of media."""
    makers = {"content": ("test-noise", "test-flaky"), "source": ("test-tone",)}[key]
    taken = [one["name"] for one in earlier if one["pipeline"] in makers]
    form = draw(st.sampled_from(("none", "file", "pattern", *(("stage",) if taken else ()))))
    count = draw(st.integers(1, 3)) if form in ("file", "pattern") else 0
    for i in range(count):
        files[f"in/{stage['name']}-{i} ü.png"] = f"{stage['name']} {i}".encode()
    if form == "file":
        stage.setdefault("matrix", {})[key] = [f"in/{stage['name']}-{i} ü.png" for i in range(count)]
    elif form == "pattern":
        stage["files"] = {key: f"in/{stage['name']}-*.png"}
    elif form == "stage":
        stage["files"] = {key: {"stage": draw(st.sampled_from(taken))}}


@st.composite
def recipes(draw: st.DrawFn) -> Drawn:
    files: dict[str, bytes] = {}
    found: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 3))):
        found.append(draw(stages(files, found)))
    head: dict[str, Any] = {"description": draw(WORDS)} if draw(st.booleans()) else {}
    if draw(st.booleans()):
        head["name"] = "foxes"
    if len(found) == 1 and draw(st.booleans()):
        drawn = Drawn(head | {key: value for key, value in found[0].items() if key != "name"}, files)
        prefix = ""
    else:
        drawn, prefix = Drawn(head | {"stages": found}, files), f"stages.{found[-1]['name']}."
    if draw(st.booleans()):
        place = next((key for key in ("matrix", "zip", "params") if "seed" in found[-1].get(key, {})), "params")
        seed = draw(st.integers(0, 99))
        length = len(found[-1]["zip"]["seed"]) if place == "zip" else 1
        drawn.overrides.append(f"{prefix}{place}.seed={seed if place == 'params' else [seed] * length}")
        if place == "matrix":  # the seed of before may be named there
            drawn.overrides += [f"{prefix}{key}=null" for key in ("include", "exclude") if key in found[-1]]
    return drawn


def block(value: Any, indent: int = 0) -> str:
    """Values as YAML, one to a line. Texts and keys as JSON has them, which YAML reads the same."""
    pad = " " * indent
    if isinstance(value, dict) and value:
        return "".join(f"\n{pad}{scalar(key)}: {block(item, indent + 2)}" for key, item in value.items())
    if isinstance(value, list) and value:
        return "".join(f"\n{pad}- {block(item, indent + 2)}" for item in value)
    return scalar(value)


def scalar(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def backwards(value: Any) -> Any:
    """The same with every mapping's keys the other way round."""
    if isinstance(value, dict):
        return {key: backwards(item) for key, item in reversed(value.items())}
    return [backwards(item) for item in value] if isinstance(value, list) else value


def identities(jobs: list[Job]) -> list[tuple[str, tuple[str, ...]]]:
    return [(job.id, job.names) for job in jobs]


pytestmark = pytest.mark.usefixtures("flaky")


def folder() -> tempfile.TemporaryDirectory[str]:
    """One for each example: a fixture's lasts through them all."""
    return tempfile.TemporaryDirectory(prefix="genkit-")


def check_drawn(drawn: Drawn) -> None:
    with folder() as one, folder() as two:
        _check_drawn(drawn, drawn.at(Path(one)), drawn.at(Path(two)))


def _check_drawn(drawn: Drawn, one: Path, two: Path) -> None:
    text = block(drawn.value)

    def jobs(text: str, root: Path = one, overrides: list[str] = drawn.overrides) -> list[Job]:
        return list(plan.stream(recipe.parse(text, root=root, overrides=overrides)))

    first = jobs(text)
    assert first
    assert jobs(text) == first
    assert identities(jobs(text, two)) == identities(first), "the folder is no part of a job"
    again = recipe.parse(text, root=one, overrides=drawn.overrides).document.value
    assert jobs(block(again), overrides=[]) == first, "a recipe written out again is the same one"
    turned = jobs(block(backwards(drawn.value)))
    assert Counter(job.id for job in turned) == Counter(job.id for job in first), "order is no part of a job"
    written = plan.make(recipe.parse(text, root=one, overrides=drawn.overrides))
    plan.write(written, one / "out")
    read = plan.read(one / "out")
    assert read is not None
    assert (list(read.jobs), read.digest, read.outline) == (first, written.digest, written.outline)

    outputs = [name for job in first for name in job.names]
    assert len({caseless(name) for name in outputs}) == len(outputs)
    out = Path("/out")
    for name in outputs:
        assert names.fault(name) is None
        assert (out / name).resolve().is_relative_to(out)


def caseless(text: str) -> str:
    """Equal for what differs in case or canonical form only (the Unicode standard, D145)."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", text).casefold())


@fuzz_kit.short(60)
@given(recipes())
def test_a_drawn_recipe_plans_and_always_to_the_same_jobs(drawn: Drawn) -> None:
    check_drawn(drawn)


@pytest.mark.slow
@pytest.mark.timeout(0)
@fuzz_kit.long()
@given(recipes())
def test_drawn_recipes_at_length(drawn: Drawn) -> None:
    check_drawn(drawn)


# What is damaged.


def check_damaged(text: bytes, drawn: Drawn, overrides: list[str], dry: bool) -> None:
    with folder() as root:
        _check_damaged(text, drawn.at(Path(root)), overrides, dry)


def _check_damaged(text: bytes, root: Path, overrides: list[str], dry: bool) -> None:
    path = root / "recipe.yaml"
    path.write_bytes(text)
    settings = [part for override in overrides for part in ("--set", override)]
    arguments = ("run", str(path), "--dry-run", "--out", str(root / "out")) if dry else ("validate", str(path))
    status, _, said = fuzz_kit.genkit(*arguments, *settings)
    assert status in (0, 2)
    assert not (root / "out").exists()
    assert not status or said.startswith((f"genkit: {root}", "genkit: --set ")), "the place opens the line"


@st.composite
def damaged(draw: st.DrawFn) -> tuple[bytes, Drawn, list[str]]:
    """A recipe with wounds, or one whose tables have them, or one with wounded --set."""
    drawn = draw(recipes())
    text = block(drawn.value)
    where = draw(st.sampled_from(("recipe", "recipe", "recipe", "files", "set")))
    if where == "recipe":
        return fuzz_kit.wounded(text, draw(fuzz_kit.WOUNDS)), drawn, drawn.overrides
    if where == "files" and drawn.files:
        name = draw(st.sampled_from(sorted(drawn.files)))
        drawn.files[name] = fuzz_kit.wounded(drawn.files[name].decode(), draw(fuzz_kit.WOUNDS))
        return text.encode(), drawn, drawn.overrides
    keys = st.sampled_from(
        ("params.seed", "matrix.width", "stages.stage-0.params.x", "stages.0", "stages", "rows", "files.content")
    )
    fixed = st.builds(lambda key, trap: f"{key}={trap}", keys, st.sampled_from(fuzz_kit.TRAPS))
    return text.encode(), drawn, draw(st.lists(fixed | st.text(max_size=20), min_size=1, max_size=3))


@st.composite
def wrong(draw: st.DrawFn) -> tuple[bytes, Drawn, list[str]]:
    """A recipe with values of the wrong kind in it, anywhere."""
    drawn = draw(recipes())
    anything = st.recursive(
        VALUES | st.sampled_from(fuzz_kit.TRAPS).filter(lambda text: "\ud800" not in text),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
        max_leaves=5,
    )
    for _ in range(draw(st.integers(1, 3))):
        _replace(draw, drawn.value, draw(anything))
    return block(drawn.value).encode(), drawn, drawn.overrides


def _replace(draw: st.DrawFn, value: Any, new: Any) -> None:
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = draw(st.sampled_from(keys))
        if isinstance(value[key], dict | list) and value[key] and draw(st.integers(0, 3)):
            value = value[key]
            continue
        value[key] = new
        return


@fuzz_kit.short(120)
@given(damaged() | wrong(), st.booleans())
def test_a_damaged_recipe_is_refused_in_one_line(case: tuple[bytes, Drawn, list[str]], dry: bool) -> None:
    text, drawn, overrides = case
    check_damaged(text, drawn, overrides, dry)


@pytest.mark.slow
@pytest.mark.timeout(0)
@fuzz_kit.long()
@given(damaged() | wrong(), st.booleans())
def test_damaged_recipes_at_length(case: tuple[bytes, Drawn, list[str]], dry: bool) -> None:
    text, drawn, overrides = case
    check_damaged(text, drawn, overrides, dry)


SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("*/*.yaml"))


@pytest.mark.slow
@pytest.mark.timeout(0)
@fuzz_kit.long()
@given(st.sampled_from(SHIPPED), fuzz_kit.WOUNDS)
def test_damaged_shipped_recipes_at_length(shipped: Path, wounds: list[fuzz_kit.Wound]) -> None:
    with folder() as root:
        path = Path(root, "recipe.yaml")
        path.write_bytes(fuzz_kit.wounded(shipped.read_text("utf-8"), wounds))
        status, _, _ = fuzz_kit.genkit("validate", str(path))
        assert status in (0, 2)
