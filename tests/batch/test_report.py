"""The report: everything on one page that needs nothing else, and nothing in it does anything but the page's script."""

from __future__ import annotations

import base64
import gc
import hashlib
import html.parser
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from genkit.batch import plan, recipe, report, runner
from genkit.batch.job import Job
from genkit.batch.journal import Done, Failed, Journal, Made
from genkit.batch.plan import Plan
from genkit.batch.planning.outline import AxisOutline, Outline, StageOutline
from genkit.batch.reporting import results

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Reader(html.parser.HTMLParser):
    def __init__(self, text: str = "") -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def planned(count: int, *, stages: Sequence[str] = ("one",), names: Sequence[str] = ("seed",), **about: str) -> Plan:
    """A plan of `count` pictures a stage, numbered by the names: of two, the second counts in tens."""
    outlines = [StageOutline(name, "test-noise", axes=tuple(AxisOutline((n,)) for n in names)) for name in stages]

    def job(stage: str, i: int) -> Job:
        variables = dict(zip(names, (i,) if len(names) == 1 else (i // 10, i % 10), strict=True))
        params = {"seed": 7, "count": 1, **variables}
        return Job(f"{stage}{i}", stage, i + 1, "test-noise", None, params, f"{stage}/p{i:05}.png", variables=variables)

    jobs = (job(stage, i) for stage in stages for i in range(count))
    return plan.gather(Outline(**{"name": "many", **about}, stages=tuple(outlines)), jobs)


def entered(made: Plan, out: Path, entries: Callable[[int, Job], Done | Failed | None]) -> None:
    """Puts into the folder's journal what `entries` says of each job, by its place; every picture is the same file."""
    out.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(out / "one.png")
    found = [entry for place, job in enumerate(made.jobs) if (entry := entries(place, job))]
    with Journal(out) as journal:
        journal.enter(*found)


def done(job: Job, **how: object) -> Done:
    return Done(job.id, job.output, (Made("one.png", "0" * 64, 100),), **how)  # type: ignore[arg-type]


@pytest.fixture
def read_report(noise_pipeline: str, tmp_path: Path):
    def read_report(text: str) -> Reader:
        made = plan.make(recipe.parse(text, root=tmp_path))
        runner.run(made, tmp_path / "out", replace=True)
        return Reader(report.write(made, tmp_path / "out").read_text("utf-8"))

    return read_report


def test_every_file_is_shown_and_linked_and_nothing_comes_from_elsewhere(read_report, tmp_path: Path) -> None:
    page = read_report(
        "stages:\n"
        "- {name: picture, pipeline: test-noise, params: {count: 2}, output: 'a b#%.png'}\n"
        "- {name: sound, pipeline: test-tone}\n"
        "- {name: tune, pipeline: test-tune}\n"
    )
    links = {unquote(str(link["href"])) for link in page.of("a")}
    files = {
        f"./{p.relative_to(tmp_path / 'out')}"
        for p in (tmp_path / "out").rglob("*.*")
        if p.suffix in (".png", ".mid", ".wav")
    }
    assert files == links
    assert [unquote(str(player["src"])) for player in page.of("audio")] == ["./sound/recipe.wav"]
    pictures = page.of("img")
    assert len(pictures) == 3  # two pictures and a roll
    assert all(str(picture["src"]).startswith("data:image/") for picture in pictures)
    addresses = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert not [address for address in addresses if re.match(r"(?!data:)[a-z]+:|//", str(address))]
    assert not page.of("link")


def test_what_a_recipe_says_is_only_text(read_report) -> None:
    evil = "<script>alert(1)</script>\\\"' onmouseover=x"
    page = read_report(
        f'name: x\ndescription: "{evil}"\npipeline: test-noise\n'
        f'matrix: {{look: ["{evil}", plain], seed: [1, 2]}}\noutput: "{{look}}-{{seed}}.png"'
    )
    assert page.of("script") == [{}]
    assert not [attributes for _, attributes in page.tags if "onmouseover" in attributes]
    assert page.text.count("<script>alert(1)</script>\"' onmouseover=x") >= 2


def test_two_axes_make_a_labelled_grid(read_report) -> None:
    page = read_report("pipeline: test-noise\nmatrix: {width: [4, 5], height: [6, 7, 8]}")
    assert len(page.of("table")) == 1
    assert (len(page.of("tr")), len(page.of("th")), len(page.of("img"))) == (4, 2 + 3, 6)
    three = read_report(
        "pipeline: test-noise\nmatrix: {strength: [0.1, 0.2], width: [4, 5], height: [6, 7, 8]}\nname: b"
    )
    assert len(three.of("table")) == 3


def test_failures_are_told(read_report, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    page = read_report("pipeline: test-noise\nparams: {content: a.png}")
    assert "0 of 1 made" in page.text
    assert "1 failed" in page.text
    assert "a.png" in page.text


def test_a_damaged_picture_leaves_a_link(read_report, noise_pipeline: str, tmp_path: Path) -> None:
    made = plan.make(recipe.parse("pipeline: test-noise", root=tmp_path))
    runner.run(made, tmp_path / "out")
    (tmp_path / "out/recipe.png").write_bytes(b"junk")
    page = Reader(report.render(made, tmp_path / "out"))
    assert not page.of("img")
    assert "./recipe.png" in {link["href"] for link in page.of("a")}


def test_the_only_script_is_the_one_that_its_policy_names_and_it_reads_no_html(read_report) -> None:
    page = read_report("pipeline: test-noise")
    (policy,) = [meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    script = Path(report.__file__).with_name("report.js").read_text("utf-8")
    assert page.text.endswith(f"{script}\n")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert f"script-src 'sha256-{digest}';" in policy
    assert "unsafe" not in policy
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert not re.search(r"HTML|DOMParser|ContextualFragment|write\(|eval|Function|fetch|https?:", script)
    assert "</" not in script


EVIL = "</script></template></noscript><img src=x onerror=alert(1)>\"'&lt;<!--"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=1))
@example(EVIL)
def test_the_tags_of_the_page_are_the_same_whatever_its_texts(noise_pipeline: str, tmp_path: Path, text: str) -> None:
    def page(text: str) -> Reader:
        made = planned(12, names=("seed", "look"), description=text)
        jobs = [replace(job, variables={**job.variables, "look": text}) for job in made.jobs]
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        failed = {
            1: Failed(jobs[1].id, jobs[1].output, text),
            2: Failed(jobs[2].id, jobs[2].output, text, quarantined=True),
        }
        entered(made, tmp_path / "out", lambda i, job: failed.get(i) or done(job, degraded=text if i == 3 else ""))
        return Reader(report.render(plan.gather(made.outline, jobs), tmp_path / "out"))

    (evil, plain) = (page(text), page("plain"))
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in plain.tags]
    assert [set(attributes) for _, attributes in evil.tags] == [set(attributes) for _, attributes in plain.tags]


def test_each_standing_is_told_and_counted_with_times_and_tries(noise_pipeline: str, tmp_path: Path) -> None:
    made = planned(6)

    def entry(i: int, job: Job) -> Done | Failed | None:
        if i == 0:
            return Failed(job.id, job.output, "the input is wrong")
        if i == 1:
            return Failed(job.id, job.output, "three processes died", 3, quarantined=True)
        return None if i == 2 else done(job, seconds=20.0, attempt=i - 2, degraded="tiles of 512" if i == 5 else "")

    entered(made, tmp_path / "out", entry)
    page = Reader(report.render(made, tmp_path / "out"))
    states = [job.get("data-state") for job in page.of("article")]
    assert states == ["failed", "quarantined", "to do", None, None, "degraded"]
    told = ("3 of 6 made", "1 failed", "1 quarantined", "1 to do", "3 tried more than once", "60 s, 20 s each")
    for text in (*told, "2 tries", "degraded: tiles of 512", "three processes died (tried 3 times)", "genkit retry"):
        assert text in page.text
    options = [option["value"] for option in page.of("option")]
    assert options == ["", "made", "degraded", "failed", "quarantined", "to do"]


def test_a_job_that_failed_after_it_was_made_once_is_failed(noise_pipeline: str, tmp_path: Path) -> None:
    made = planned(1)
    entered(made, tmp_path / "out", lambda i, job: done(job))
    entered(made, tmp_path / "out", lambda i, job: Failed(job.id, job.output, "not again"))
    page = Reader(report.render(made, tmp_path / "out"))
    assert "0 of 1 made1 failed" in page.text
    assert not page.of("img")


@pytest.mark.parametrize("names", [("seed",), ("tens", "seed")])
def test_ten_thousand_jobs_are_all_there_in_few_bytes_most_of_them_inert(
    noise_pipeline: str, tmp_path: Path, names: Sequence[str]
) -> None:
    made = planned(10_000, names=names)
    entered(made, tmp_path / "out", lambda i, job: done(job, seconds=1.0) if i % 100 else None)
    path = report.write(made, tmp_path / "out")
    assert path.stat().st_size < 8_000_000  # 500 thumbnails of 6 KB at most come on top of it
    text = path.read_text("utf-8")
    live = re.sub(r"<(template|noscript)>.*?</\1>", "", text, flags=re.S)
    templates = "".join(re.findall(r"<template>(.*?)</template>", text, flags=re.S))
    assert len(re.findall(r' class="(?:card )?job"', live)) <= 600
    assert len(re.findall(r' class="(?:card )?job"', live + templates)) == 10_000
    listed = "".join(re.findall(r"<noscript>(.*?)</noscript>", text, flags=re.S))
    named = [set(re.findall(r"one/p\d{5}\.png", part)) for part in (live, templates, listed)]
    assert named[0] | named[1] == named[0] | named[2] == {job.output for job in made.jobs}


def test_of_a_large_plan_few_jobs_are_held_at_once(noise_pipeline: str, tmp_path: Path) -> None:
    made = planned(3000, stages=("one", "two"))
    entered(made, tmp_path / "out", lambda i, job: done(job))
    most = 0
    for i, piece in enumerate(report._Page(made, tmp_path / "out").pieces()):
        if len(piece) > 10_000 and i % 5 == 0:
            most = max(most, sum(type(one) is Job for one in gc.get_objects()))
    assert 0 < most < 1000


def test_a_plan_read_back_gives_the_same_page_and_an_input_that_is_gone_no_player(
    noise_pipeline: str, tmp_path: Path
) -> None:
    import torch

    from genkit.media.audio import Audio

    Audio(torch.zeros(1, 2000), 22050).save(tmp_path / "a.wav")
    made = plan.make(recipe.parse("pipeline: test-tone\nparams: {source: a.wav}", root=tmp_path))
    runner.run(made, tmp_path / "out")
    again = plan.read(tmp_path / "out")
    assert again is not None
    page = report.render(made, tmp_path / "out")
    assert report.render(again, tmp_path / "out") == page
    assert len(Reader(page).of("audio")) == 2
    (tmp_path / "a.wav").unlink()
    (player,) = Reader(report.render(again, tmp_path / "out")).of("audio")
    assert player["src"] == "./recipe.wav"


def test_beyond_the_thumbnails_a_picture_is_its_file_and_pictures_use_up_no_rolls(
    read_report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "MAX_THUMBNAILS", 1)
    page = read_report(
        "stages:\n"
        "- {name: picture, pipeline: test-noise, matrix: {seed: [1, 2]}, output: 'a b {seed}.png'}\n"
        "- {name: tune, pipeline: test-tune}\n"
    )
    first, second, roll = (str(picture["src"]) for picture in page.of("img"))
    assert first.startswith("data:image/jpeg;")
    assert second == "./a%20b%202.png"
    assert roll.startswith("data:image/png;")


def test_a_picture_that_is_not_at_hand_is_left_to_the_browser(noise_pipeline: str, tmp_path: Path) -> None:
    made = planned(1)
    entered(made, tmp_path / "out", lambda i, job: done(job))
    (tmp_path / "out/one.png").unlink()  # as of outputs that are kept behind a URL, where the report goes too
    (picture,) = Reader(report.render(made, tmp_path / "out")).of("img")
    assert picture["src"] == "./one.png"


# In a browser.


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., Reader]:
    """A page as a browser without a window has it, after its scripts."""
    if BROWSER is None:
        pytest.skip("needs chromium")

    def browse(page: Path, fragment: str = "") -> Reader:
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command += ["--virtual-time-budget=20000", "--dump-dom", f"{page.as_uri()}{fragment}"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return Reader(result.stdout)

    return browse


DRIVER = """
const log = [];
const cards = () => [...document.querySelectorAll(".results .job .name")].map((name) => name.textContent);
const tell = () => {
  log.push([cards().at(0), cards().at(-1), cards().length, document.getElementById("shown").textContent]);
};
const press = (value) => { document.querySelector(`#pager button[value=${value}]`).click(); tell(); };
const set = (id, value, kind) => {
  document.getElementById(id).value = value;
  document.getElementById(id).dispatchEvent(new Event(kind, {bubbles: true}));
};
tell();
["next", "last", "previous", "first", "previous"].forEach(press);
document.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"})); tell();
set("page", 4, "change"); tell();
set("page", 99, "change"); tell();
set("stage", "two", "change"); tell();
set("stage", "", "change");
set("state", "failed", "change"); tell();
set("state", "", "change");
set("find", "SEED 77", "input");
setTimeout(() => { tell(); document.title = JSON.stringify(log); }, 1000);
"""


def test_the_script_turns_pages_filters_and_searches(noise_pipeline: str, tmp_path: Path, browse) -> None:
    made = planned(750, stages=("one", "two"))

    def entry(i: int, job: Job) -> Done | Failed:
        return Failed(job.id, job.output, "not today") if i % 100 == 99 else done(job)

    entered(made, tmp_path / "out", entry)
    path = report.write(made, tmp_path / "out")
    text = re.sub(r"<meta http-equiv[^>]*>", "", path.read_text("utf-8"))  # to let in the test's own
    path.write_text(text.replace("</body>", f"<script>{DRIVER}</script></body>"), "utf-8")
    page = browse(path)
    title = re.search(r"\[\[.*\]\]", page.text)
    assert title is not None
    log = json.loads(title[0])

    first = ["one/p00000.png", "one/p00399.png", 400, "1 to 400 of 1,500 jobs"]
    second = ["one/p00400.png", "one/p00749.png", 350, "401 to 750 of 1,500 jobs"]  # whole parts: 200 more do not fit
    third = ["two/p00000.png", "two/p00399.png", 400, "751 to 1,150 of 1,500 jobs"]
    last = ["two/p00400.png", "two/p00749.png", 350, "1,151 to 1,500 of 1,500 jobs"]
    assert log[:8] == [first, second, last, third, first, first, second, last]
    assert log[8:] == [
        last,
        ["two/p00000.png", "two/p00399.png", 400, "1 to 400 of 750 jobs (of 1,500)"],
        ["one/p00099.png", "two/p00749.png", 15, "15 jobs (of 1,500)"],
        ["one/p00077.png", "two/p00677.png", 14, "14 jobs (of 1,500)"],
    ]


def test_of_a_grid_the_rows_and_columns_that_hold_what_was_asked_for_are_shown(
    noise_pipeline: str, tmp_path: Path, browse
) -> None:
    made = planned(1000, names=("tens", "ones"))
    wrong = {57, 58, 827}
    entered(made, tmp_path / "out", lambda i, job: Failed(job.id, job.output, "no") if i in wrong else done(job))
    page = browse(report.write(made, tmp_path / "out"), "#state=failed")
    heads = [(head["scope"], head["title"]) for head in page.of("th")]
    # a hundred columns are more than ten: tens are rows, 20 of them in a part
    assert heads == [("col", "7"), ("col", "8"), ("row", "5"), ("col", "7"), ("row", "82")]
    assert [job["title"] for job in page.of("div") if job.get("class") == "job"] == [
        f"one/p{i:05}.png: {i // 10} {i % 10}" for i in sorted(wrong)
    ]


def test_no_other_script_runs_and_the_address_keeps_the_place(noise_pipeline: str, tmp_path: Path, browse) -> None:
    made = planned(500)
    entered(made, tmp_path / "out", lambda i, job: done(job))
    path = report.write(made, tmp_path / "out")
    page = browse(path, "#page=2")
    assert [one for one in page.of("div") if one.get("id") == "tools"] == [{"id": "tools", "role": "search"}]
    assert "401 to 500 of 500 jobs" in page.text
    assert len(page.of("article")) == 100
    text = path.read_text("utf-8").replace("<footer>", "<script>document.body.className = 'mine'</script><footer>")
    path.write_text(text, "utf-8")
    assert browse(path).of("body") == [{}]
