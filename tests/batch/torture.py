# ruff: noqa: T201 - a program that prints
"""Kills a batch in a loop, and looks whether it ends as if nothing had happened.

    python tests/batch/torture.py                                    # a hundred kills of recipes/torture.yaml
    python tests/batch/torture.py --recipe mine.yaml --kills 1000 --workers 8 --out /data/torture

The recipe is run once undisturbed. Then it is run in another folder, killed by SIGKILL at a random moment, run again,
killed again, until it ends; in a third folder, and so on, until there were kills enough. Half of the kills come after
a run has made its first file, a third after it has begun with one, the others at any moment from the start. Some take a
single worker and leave the run alive; some are no kills but a Ctrl-C or a SIGTERM, once or twice, after which a run
has to end by itself and tidily. The next run begins at once, while workers of the killed one may still be alive.

Of every folder it is checked that

- it holds what the undisturbed one holds, byte for byte (but for `.genkit` and the report, which tells times),
- no temporary file is left, and `genkit verify` finds nothing wrong,
- the journal can be read, says of every output once that it is done, and of none that is not there,
- one more run finds nothing to do, and no worker is left alive.

Exits with 0 if all of that holds. `--forked` is for small recipes: the runs are forked from this process, which has
imported everything, and work without workers; that is ten times as many kills in a minute. Other options go to
`genkit run`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import psutil
from faults import REPORTS, content, leavings

GENKIT = [sys.executable, "-c", "import sys; from genkit.cli import main; sys.exit(main())"]
ROOT = Path(__file__).resolve().parents[2]
PER_ROUND = 12  # kills that a folder should take: how long a run is left alive follows from it
MOMENTS = {"done": 5, "start": 3, "": 2}  # what a run is waited for before the moment is drawn, and in which shares
WORKERS = 0.35  # share of kills, where there are workers, that take one of them
ASKED = 0.15  # share that are asked to stop by SIGINT or SIGTERM
SPARED = 2  # workers killed in one run: a job that sees three die is held for their cause
PATIENCE = 600  # seconds that a run may take


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def journal(out: Path) -> Path:
    return out / ".genkit/journal.jsonl"


def size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


class Run:
    """`genkit run` on a folder, in a process of its own."""

    def __init__(self, given: argparse.Namespace, out: Path) -> None:
        self.out, self.before = out, size(journal(out))
        self.log = out.with_suffix(".log")
        command = ["run", str(given.recipe), "--out", str(out), "--quiet", *given.options]
        self.process = self._forked(command) if given.forked else self._started(command, given.workers)
        self.seen: set[psutil.Process] = set()

    def _started(self, command: list[str], workers: int) -> psutil.Process:
        with self.log.open("w") as log:
            return psutil.Popen(
                [*GENKIT, *command, "--workers", str(workers)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _forked(self, command: list[str]) -> psutil.Process:
        child = os.fork()
        if child:
            return psutil.Process(child)
        status = 70
        try:
            from genkit.cli import main

            with self.log.open("w") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                status = main(command)
        except SystemExit as ending:
            status = int(ending.code or 0)
        finally:
            os._exit(status)

    def ended(self, seconds: float) -> int | None:
        """Waits so long for the end; its exit status, or None."""
        with contextlib.suppress(psutil.TimeoutExpired):
            return int(self.process.wait(max(0.0, seconds)) or 0)
        return None

    def wait_for(self, kind: str) -> None:
        """Waits until there is a new line of that kind in the journal, or the run has ended."""
        deadline = time.monotonic() + PATIENCE
        while not self.has(kind) and time.monotonic() < deadline and self.ended(0.002) is None:
            pass

    def has(self, kind: str) -> bool:
        """Whether there is a new line of that kind in the journal."""
        with contextlib.suppress(OSError), journal(self.out).open("rb") as file:
            file.seek(self.before)
            return b'"kind":"%s"' % kind.encode() in file.read()
        return False

    def children(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            found = self.process.children(recursive=True)
            self.seen.update(found)
            return found
        return []

    def kill(self) -> None:
        self.children()
        with contextlib.suppress(psutil.NoSuchProcess):
            self.process.kill()
        self.process.wait()


@dataclass
class Tally:
    kills: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    again: int = 0  # jobs handed out a second time
    wrong: list[str] = field(default_factory=list)
    workers: set[psutil.Process] = field(default_factory=set)

    @property
    def count(self) -> int:
        return sum(self.kills.values())


class Torture:
    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.chance = given, random.Random(given.seed)
        self.reference = given.out / "undisturbed"
        self.expected: dict[str, str] = {}
        self.starting = self.working = 0.0  # seconds that an undisturbed run takes to begin, and from then on
        self.tally = Tally()

    def run(self) -> bool:
        self._undisturbed()
        while self.tally.count < self.given.kills and not self.tally.wrong:
            self.tally.rounds += 1
            self._round(self.given.out / f"round-{self.tally.rounds}")
        self._orphans()
        return not self.tally.wrong

    def _undisturbed(self) -> None:
        start = time.monotonic()
        run = Run(self.given, self.reference)
        run.wait_for("done")
        began = time.monotonic()
        if run.ended(PATIENCE) != 0:
            stop(f"the undisturbed run failed: {run.log.read_text()}")
        self.starting, self.working = began - start, time.monotonic() - began
        self.expected = content(self.reference)
        self._check(self.reference)
        if self.tally.wrong:
            stop(f"the undisturbed run: {'; '.join(self.tally.wrong)}")
        say(f"undisturbed: {len(self.expected)} files, {self.starting:.1f} s to begin and {self.working:.1f} s of work")

    def _round(self, out: Path) -> None:
        """One folder, from nothing until the recipe has ended in it."""
        while True:
            run = Run(self.given, out)
            status = self._disturb(run) if self.tally.count < self.given.kills else run.ended(PATIENCE)
            self.tally.workers |= run.seen
            if status is not None and status != -signal.SIGKILL:
                break
            if self.tally.wrong:
                return
        if status:
            self.tally.wrong.append(f"a run ended with {status}: {run.log.read_text().strip()}")
        else:
            self._check(out)
            self._no_more_to_do(out)
        say(f"{out.name}: {self.tally.count} kills so far, {self.tally.wrong or 'all well'}")

    def _disturb(self, run: Run) -> int | None:
        """Kills a run, perhaps some of its workers before; its exit status if it ended by itself first."""
        moment = self.chance.choices(list(MOMENTS), list(MOMENTS.values()))[0]
        if moment:
            run.wait_for(moment)
        span = self.working * 2 / PER_ROUND if moment else self.starting * 1.5
        for spared in range(SPARED + 1):
            status = run.ended(self.chance.uniform(0, span))
            if status is not None:
                return status
            children = run.children()
            if spared < SPARED and children and self.chance.random() < WORKERS:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.chance.choice(children).kill()
                    self._count("of a worker")
                continue
            break
        if self.chance.random() < ASKED:
            return self._ask(run)
        run.kill()
        self._count("at work" if run.has("done") else "loading" if run.has("start") else "starting")
        return -signal.SIGKILL

    def _ask(self, run: Run) -> int | None:
        """Asks a run to stop; as if it had been killed where it did so as it should, else its exit status."""
        number = self.chance.choice((signal.SIGINT, signal.SIGTERM))
        began = run.has("start")
        for _ in range(self.chance.choice((1, 2))):
            with contextlib.suppress(psutil.NoSuchProcess):
                run.process.send_signal(number)
            time.sleep(self.chance.uniform(0, 0.3))
        self._count(f"by {number.name}")
        status = run.ended(PATIENCE)
        if status == 0:
            return 0
        said = run.log.read_text()
        ended = (128 + number, -number)  # the latter if the second came when all was over; to a shell they are the same
        if began and (status not in ended or "Traceback" in said or leavings(run.out)):
            self.tally.wrong.append(f"asked by {number.name}: {status}, {leavings(run.out)}, {said.strip()}")
        return -signal.SIGKILL

    def _count(self, what: str) -> None:
        self.tally.kills[what] += 1
        if self.tally.count % 10 == 0:
            say(f"{self.tally.count} of {self.given.kills} kills")

    def _check(self, out: Path) -> None:
        self.tally.wrong += [f"{out}: {fault}" for fault in (*self._files(out), *self._lines(out))]

    def _files(self, out: Path) -> Iterator[str]:
        there = content(out)
        for name in sorted(there.keys() | self.expected.keys()):
            if there.get(name) != self.expected.get(name):
                yield f"{name} is {'missing' if name not in there else 'not what it should be'}"
        for name in leavings(out):
            yield f"{name} is left over"
        for name in REPORTS:
            if (self.reference / name).exists() and not (out / name).exists():
                yield f"{name} is missing"

    def _lines(self, out: Path) -> Iterator[str]:
        """What is wrong with the journal."""
        done: Counter[str] = Counter()
        begun: Counter[str] = Counter()
        for number, text in enumerate(journal(out).read_text().splitlines(), 1):
            try:
                line = json.loads(text)
            except ValueError:
                yield f"line {number} of the journal is damaged"
                continue
            if line["kind"] == "done":
                done[line["output"]] += 1
                for made in line["files"]:
                    if self.expected.get(made["path"]) != made["sha256"].removeprefix("sha256:"):
                        yield f"the journal says that {made['path']} is done, of another content"
            elif line["kind"] == "start":
                begun.update(line.get("outputs", [line.get("output")]))
        for output, times in done.items():
            if times > 1:
                yield f"{output} was made {times} times"
        self.tally.again += sum(times - 1 for times in begun.values())

    def _no_more_to_do(self, out: Path) -> None:
        from genkit.cli import commands

        before = journal(out).read_bytes()
        run = Run(self.given, out)
        if run.ended(PATIENCE) or journal(out).read_bytes() != before:
            self.tally.wrong.append(f"{out}: one more run finds something to do: {run.log.read_text()}")
        if "verify" in commands():
            verify = subprocess.run([*GENKIT, "verify", str(out)], capture_output=True, text=True)
            if verify.returncode:
                self.tally.wrong.append(f"{out}: verify says {verify.stdout}{verify.stderr}")

    def _orphans(self) -> None:
        for worker in psutil.wait_procs(self.tally.workers, timeout=30)[1]:
            self.tally.wrong.append(f"process {worker.pid} outlived its run")


def stop(text: str) -> NoReturn:
    say(text)
    sys.exit(1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/torture.yaml", help="[recipes/torture.yaml]")
    parser.add_argument("--kills", type=int, default=100, help="how many, of runs and workers together [100]")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of a run; 0 for none [2]")
    parser.add_argument("--out", type=Path, help="a new folder to work in, kept [one below outputs/torture]")
    parser.add_argument("--seed", type=int, help="of the moments of the kills [drawn]")
    parser.add_argument("--forked", action="store_true", help="fork runs from this process; without workers")
    given, given.options = parser.parse_known_args(namespace=argparse.Namespace(options=[]))
    given.seed = random.SystemRandom().randrange(1 << 32) if given.seed is None else given.seed
    given.out = (given.out or Path("outputs/torture") / time.strftime("%Y%m%d-%H%M%S")).absolute()
    if given.out.exists() and any(given.out.iterdir()):
        parser.error(f"{str(given.out)!r} is not empty; name a new folder")
    given.out.mkdir(parents=True, exist_ok=True)
    return given


def main() -> None:
    given = arguments()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
    if given.forked:
        from genkit.cli import main as genkit

        os.environ["OMP_NUM_THREADS"] = "1"  # a forked process has no threads but its own
        if genkit(["run", str(given.recipe), "--out", str(given.out / "warm"), "--quiet", *given.options]):
            stop("the recipe fails")
    say(f"in {given.out}, with --seed {given.seed}")
    torture = Torture(given)
    well = torture.run()
    tally = torture.tally
    killed = ", ".join(f"{count} {what}" for what, count in tally.kills.most_common())
    summary = f"{tally.count} kills ({killed}) in {tally.rounds} folders of {len(torture.expected)} files"
    if not well:
        stop("\n".join([f"{summary}:", *tally.wrong[:40]]))
    again = tally.again / max(1, tally.count)
    print(f"{summary}, each as if nothing had happened; {again:.2f} jobs handed out again for each kill")


if __name__ == "__main__":
    main()
