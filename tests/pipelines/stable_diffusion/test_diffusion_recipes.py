"""Recipes: those that ship make what they say; files and models in objects are part of a job's identity."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import additions_kit
import numpy as np
import painting_kit as kit
import PIL.Image
import pytest

from genkit.batch import library, plan, recipe, runner
from genkit.batch.job import Job
from genkit.batch.planning.planner import Digests
from genkit.errors import RecipeError
from genkit.media import provenance

SHIPPED = Path(__file__).parents[3] / "recipes" / "stable_diffusion"
COUNTS = {"txt2img": 6, "img2img": 8, "inpaint": 4, "outpaint": 4, "variations": 7}


def anything(ref: str, models: Mapping[str, Any]) -> str:
    """A digest for models that no test has."""
    return f"sha256:{ref}"


def jobs(path: Path, digests: Digests | None = None) -> list[Job]:
    return list(plan.stream(recipe.load(path), digests=digests or Digests(model=anything)))


@pytest.mark.parametrize("name", COUNTS)
def test_a_shipped_recipe_makes_the_jobs_that_it_speaks_of(name: str) -> None:
    made = jobs(SHIPPED / f"{name}.yaml")
    assert len(made) == COUNTS[name]
    assert len({job.id for job in made}) == len(made)


def test_every_recipe_of_the_folder_is_tested_or_the_grid() -> None:
    assert {path.stem for path in SHIPPED.glob("*.yaml")} == {*COUNTS, "xyz"}


def smaller(name: str, tmp_path: Path, sd: Path) -> Path:
    """A shipped recipe's copy, on a tiny model and in few steps."""
    text = (SHIPPED / f"{name}.yaml").read_text()
    text = text.replace("../quickstart/", f"{SHIPPED.parent / 'quickstart'}/").replace(
        "eyes.png", f"{SHIPPED}/eyes.png"
    )
    text = text.replace("model: emoji", f"model: {sd}").replace("prompt:", "num_inference_steps: 3\n  prompt:")
    if name == "variations":
        text = text.replace("num_inference_steps: 3\n  prompt:", "num_inference_steps: 3\n      prompt:")
    path = tmp_path / f"{name}.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["inpaint", "variations"])
def test_a_shipped_recipe_runs(name: str, sd: Path, run: Any, tmp_path: Path) -> None:
    done = run("run", smaller(name, tmp_path, sd), "--out", tmp_path / "out", "--quiet")
    assert done.status == 0, done.err
    pictures = [tmp_path / "out" / job.output for job in jobs(tmp_path / f"{name}.yaml")]
    assert all(path.is_file() for path in pictures)
    if name == "inpaint":
        kept = np.asarray(PIL.Image.open(SHIPPED / "eyes.png").convert("L")) == 0
        face = np.asarray(PIL.Image.open(SHIPPED.parent / "quickstart" / "face.png"))
        for path in pictures:
            assert np.array_equal(np.asarray(PIL.Image.open(path))[kept], face[kept])
    assert run("run", tmp_path / f"{name}.yaml", "--out", tmp_path / "out", "--json").status == 0
    assert run("rerun", pictures[0], "--check").out == "identical\n"


@pytest.mark.parametrize(("dtype", "sizes", "levels"), [("float32", [1] * 4, 0), ("float32/bfloat16", [4], 8)])
def test_jobs_of_one_shape_are_one_batch_unless_every_bit_counts(
    dtype: str, sizes: list[int], levels: int, sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    kind = type(kit.loaded(sd))
    before = kind.run
    monkeypatch.setattr(kind, "run", lambda self, batch, told: seen.append(len(batch)) or before(self, batch, told))
    path = tmp_path / "r.yaml"
    path.write_text(
        f"name: r\npipeline: stable-diffusion\nmodel: {sd}\nparams: {{num_inference_steps: 2}}\n"
        "matrix: {prompt: [a red apple, a green fox], seed: [1, 2]}\noutput: '{index}.png'\n"
    )
    assert len({kind.batch_key(kind.Params.parse(job.params)) for job in jobs(path)}) == 1
    runner.run(plan.make(recipe.load(path), dtype=dtype), tmp_path / "out", device="cpu", dtype=dtype)
    assert seen == sizes
    for number, (prompt, seed) in enumerate([(p, s) for p in ("a red apple", "a green fox") for s in (1, 2)], 1):
        alone = kit.loaded(sd, dtype)(prompt=prompt, seed=seed, num_inference_steps=2)
        made = np.asarray(PIL.Image.open(tmp_path / "out" / f"{number}.png"), np.int16)
        assert np.abs(made - np.asarray(alone.images[0].pil, np.int16)).max() <= levels


@pytest.fixture
def controlled(tmp_path: Path) -> Path:
    """A recipe with a picture and models in objects, each named from the recipe's folder."""
    (tmp_path / "parts").mkdir()
    kit.photo().save(tmp_path / "parts" / "edges.png")
    (tmp_path / "parts" / "net.safetensors").write_bytes(b"a net")
    (tmp_path / "parts" / "detail.safetensors").write_bytes(b"a lora")
    given = {
        "pipeline": "stable-diffusion",
        "params": {
            "prompt": "a",
            "seed": 1,
            "control": [{"model": "parts/net.safetensors", "image": "parts/edges.png", "weight": 0.5}],
            "lora": ["parts/detail.safetensors:0.8"],
        },
        "output": "a.png",
    }
    (tmp_path / "r.yaml").write_text(json.dumps(given))
    return tmp_path / "r.yaml"


def digests() -> Digests:
    """Real ones, except for the shipped model."""
    from genkit.weights import digest

    return Digests(model=lambda ref, models: anything(ref, models) if ref == "emoji" else digest(ref, models))


def test_files_and_models_in_objects_start_from_the_recipe(controlled: Path) -> None:
    job = jobs(controlled, digests())[0]
    edges = controlled.parent / "parts" / "edges.png"
    assert job.inputs == {"control[0].image": provenance.digest_file(edges)}
    assert job.params["control"][0]["image"] == str(edges)
    assert job.params["control"][0]["model"] == str(controlled.parent / "parts" / "net.safetensors")
    assert job.params["lora"][0] == {"model": str(controlled.parent / "parts" / "detail.safetensors"), "weight": 0.8}


def test_a_job_is_what_they_hold_and_not_where_they_lie(controlled: Path, tmp_path: Path) -> None:
    before = jobs(controlled, digests())[0].id
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (moved / "r.yaml").write_text(controlled.read_text())
    (tmp_path / "parts").rename(moved / "parts")
    assert jobs(moved / "r.yaml", digests())[0].id == before
    for change in ("edges.png", "net.safetensors", "detail.safetensors"):
        old = (moved / "parts" / change).read_bytes()
        (moved / "parts" / change).write_bytes(old + b" changed")
        assert jobs(moved / "r.yaml", digests())[0].id != before
        (moved / "parts" / change).write_bytes(old)
    (moved / "r.yaml").write_text(controlled.read_text().replace("0.5", "0.6"))
    assert jobs(moved / "r.yaml", digests())[0].id != before


def test_a_missing_one_is_named_with_its_place(controlled: Path) -> None:
    (controlled.parent / "parts" / "edges.png").unlink()
    with pytest.raises(RecipeError, match=r"r\.yaml:1:\d+: job 1.*control\[0\]\.image.*edges\.png"):
        jobs(controlled, digests())


def test_they_travel_with_a_copy(controlled: Path) -> None:
    files = {path.name for path in library._inputs(controlled, digests())}
    assert files == {"edges.png"}  # models are named, and not taken along


def test_a_picture_in_an_object_is_digested_and_can_be_named_anew(sd: Path, run: Any, tmp_path: Path) -> None:
    net, edges = tmp_path / "net", tmp_path / "edges.png"
    additions_kit.controlnet(additions_kit.load(sd)).save_pretrained(net)
    kit.photo().save(edges)
    control = json.dumps({"model": str(net), "image": str(edges)})
    made = run(
        *("stable-diffusion", "--model", sd, "-p", "a", "--control", control, "--seed", 1),
        *("--num-inference-steps", 2, "-o", tmp_path / "a.png"),
    )
    assert made.status == 0, made.err
    record = provenance.read(tmp_path / "a.png")
    assert record.inputs["control[0].image"].sha256 == provenance.digest_file(edges)
    assert set(record.models) == {"model", "control[0].model"}
    moved = edges.rename(tmp_path / "moved.png")
    assert "input 'control[0].image' is not at" in run("rerun", tmp_path / "a.png", "--check").err
    named = ("--input", f"control[0].image={moved}")
    assert run("rerun", tmp_path / "a.png", "--check", *named).out == "identical\n"
