"""Batches: what a job costs beside its own work, in genkit, in a bare loop and in Ray Data; and where the driver ends.

    python benchmarks/batch.py [--only overhead workers resume plan driver] [--jobs 1000] [--rounds 3] [--quick]

- overhead: a pipeline that does nothing gives the same 64 px picture again and again. genkit runs it by its command, in
  one process, with one and two workers, and with two actors of Ray; beside it a loop that saves the picture with Pillow
  under its name and promises nothing, the same loop with the file and its folder synced, and Ray Data's `map_batches`
  over the same jobs saving as the plain loop does (where `ray[data]` is installed). Every side is a process of its own
  and rounds alternate. The clock is the files' own: from the first one's time to the last one's, over their number; so
  starting up is not in it and is told beside it.
- workers: a pipeline that computes for a tenth of a second on one core, with one worker and with two.
- resume: the whole command over a folder in which everything is done, with the most memory it took. The folder is
  filled by an engine that writes a byte for each job; plan, journal and what the command reads are as after any run.
- plan: recipe to jobs, with the memory that it takes beyond what is loaded.
- driver: what the runner does for a job (queue, journal, bookkeeping) where a job itself costs nothing, by how many
  outcomes come in at once; with worker processes, what the runner's process does for each job of theirs; and from it
  how long a job has to take for 1,000 GPUs to be kept busy by one driver.

To reach: at most 10 ms a job; two workers 1.7 times one; a resume of 10,000 jobs under 2 s and of 100,000 under 15 s.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

GPUS = 1000
PIPELINES = '''
"""Pipelines that cost nothing, and a known something."""
import hashlib
from typing import ClassVar
from pydantic import Field
from genkit.pipeline import Output, Params, Pipeline

class Nothing(Pipeline):
    name = "bench-nothing"
    Params: ClassVar = Params
    picture = None
    def run(self, batch, progress):
        import numpy
        from genkit.media.image import Image
        self.picture = self.picture or Image.open(numpy.arange(64 * 64 * 3, dtype="uint8").reshape(64, 64, 3))
        return [Output(images=[self.picture]) for _ in batch]

class WorkParams(Params):
    rounds: int = Field(100, description="Of hashing, in thousands.")

class Work(Nothing):
    name = "bench-work"
    Params: ClassVar = WorkParams
    def run(self, batch, progress):
        for params in batch:
            hashlib.pbkdf2_hmac("sha256", b"work", b"salt", params.rounds * 1000)
        return super().run(batch, progress)
'''


def install(folder: Path) -> dict[str, str]:
    """Puts the pipelines where a third party's would be; the environment that finds them."""
    info = folder / "bench-1.dist-info"
    info.mkdir(parents=True)
    (folder / "bench_pipelines.py").write_text(PIPELINES)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bench\nVersion: 1\n")
    names = "bench-nothing = bench_pipelines:Nothing\nbench-work = bench_pipelines:Work\n"
    (info / "entry_points.txt").write_text(f"[genkit.pipelines]\n{names}")
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GENKIT_DEVICE": "cpu"}


def recipe(folder: Path, jobs: int, pipeline: str = "bench-nothing", **params: int) -> Path:
    """A recipe of jobs that differ in their seed, one row of a table each."""
    (folder / "rows.csv").write_text("seed\n" + "".join(f"{seed}\n" for seed in range(jobs)))
    lines = [f"name: bench\npipeline: {pipeline}\nmax_jobs: {jobs}", f"params: {json.dumps(params)}", "rows: rows.csv"]
    path = folder / "recipe.yaml"
    path.write_text("\n".join([*lines, 'output: "{seed}.png"\n']))
    return path


# ------------------------------------------------------------------------------------ what runs in processes of its own


def plain(out: Path, jobs: int, sync: bool = False) -> None:
    picture = _picture()
    for seed in range(jobs):
        path = out / f"{seed}.png"
        picture.save(path, compress_level=4)
        for place in (path, out) if sync else ():
            descriptor = os.open(place, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def ray_data(out: Path, jobs: int) -> None:
    import logging

    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False

    class Save:
        def __init__(self) -> None:
            self.picture = _picture()

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            for seed in batch["item"]:
                self.picture.save(out / f"{seed}.png", compress_level=4)
            return batch

    actors = ray.data.ActorPoolStrategy(size=2)
    done = ray.data.from_items(list(range(jobs))).map_batches(Save, batch_size=32, compute=actors)
    assert done.materialize().count() == jobs
    ray.shutdown()


def _picture() -> Any:
    import numpy
    from PIL import Image

    return Image.fromarray(numpy.arange(64 * 64 * 3, dtype="uint8").reshape(64, 64, 3))


class Instant:
    """An engine of GPUS workers, who ask in turn, whose jobs cost nothing. wave: outcomes that come in at once; write:
    puts a byte in each job's place."""

    workers = GPUS

    def __init__(self, store: Any, wave: int, write: bool) -> None:
        self.store, self.wave, self.write = store, wave, write

    def run(self, source: Any, watch: Any) -> Iterator[list[Any]]:
        asked = 0
        while True:
            outcomes: list[Any] = []
            while len(outcomes) < self.wave:
                jobs = source.take(("bench-nothing", None), asked % GPUS)
                if jobs is None:
                    break
                asked += 1
                outcomes += map(self._outcome, jobs)
            if not outcomes:
                return
            yield outcomes

    def _outcome(self, job: Any) -> Any:
        from genkit.batch.engines.outcome import Outcome
        from genkit.batch.journal import Made

        if self.write:
            (self.store.home / job.output).write_bytes(b"1")
        return Outcome(job, (Made(job.output, job.id, 1),), 0.001)


def fill(path: Path, out: Path) -> None:
    _run(path, out, lambda store: Instant(store, 1000, write=True))


def planning(path: Path, jobs: int) -> dict[str, float]:
    from genkit import registry
    from genkit.batch import plan
    from genkit.batch.recipe import load

    registry.get("bench-nothing")
    before, start = _peak(), time.process_time()
    made = plan.make(load(path))
    seconds = time.process_time() - start
    assert len(made.jobs) == jobs
    return {"seconds": seconds, "megabytes": _peak() - before}


def driving(path: Path, out: Path, wave: int) -> dict[str, float]:
    """Processor's and clock's microseconds a job. wave: 0 for two worker processes."""
    from genkit.batch.runner import Watch

    times: list[tuple[float, float]] = []

    class Clock(Watch):
        def done(self, outcome: Any, final: bool) -> None:
            times.append((time.process_time(), time.perf_counter()))

    engine = (lambda store: Instant(store, wave, write=False)) if wave else None
    _run(path, out, engine, watch=Clock(), workers=0 if wave else 2)
    skipped = len(times) // 10  # the first ones bear what is loaded
    (cpu, clock), (last_cpu, last_clock), count = times[skipped], times[-1], len(times) - 1 - skipped
    return {"processor": (last_cpu - cpu) / count * 1e6, "clock": (last_clock - clock) / count * 1e6}


def _run(path: Path, out: Path, engine: Callable[[Any], Any] | None, **options: Any) -> None:
    from genkit.batch import plan, runner
    from genkit.batch.recipe import load

    runner.run(plan.make(load(path)), out, engine=engine, **options)


def _peak() -> float:
    """The most memory this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


ROLES: dict[str, Callable[..., Any]] = {
    "plain": lambda out, jobs: plain(Path(out), int(jobs)),
    "synced": lambda out, jobs: plain(Path(out), int(jobs), sync=True),
    "ray": lambda out, jobs: ray_data(Path(out), int(jobs)),
    "fill": lambda path, out: fill(Path(path), Path(out)),
    "plan": lambda path, jobs: planning(Path(path), int(jobs)),
    "drive": lambda path, out, wave: driving(Path(path), Path(out), int(wave)),
}

# -------------------------------------------------------------------------------------------------------- the measuring


class Bench:
    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options, self.env = folder, options, install(folder / "plugin")

    def call(self, role: str, *arguments: object) -> Any:
        done = self._start([__file__, "--role", role, *map(str, arguments)])
        return json.loads(done.stdout.splitlines()[-1])

    def genkit(self, *arguments: object) -> tuple[float, float, float]:
        """Runs the command. Returns its seconds by the clock and of the processor, and the most memory it had in MB."""
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "genkit", *map(str, arguments)], env=self.env, stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"genkit {' '.join(map(str, arguments))} ended with {process.returncode}")
        return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024

    def _start(self, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([sys.executable, *arguments], env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
        return done

    def fresh(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder))

    def timed(self, make: Callable[[Path], object]) -> tuple[float, float]:
        """Seconds a file, by the files' own times, and seconds until the first."""
        out = self.fresh()
        start = time.time()
        make(out)
        times = sorted(path.stat().st_mtime for path in out.glob("*.png"))
        subprocess.run(["rm", "-rf", str(out)], check=True)
        return (times[-1] - times[0]) / (len(times) - 1), times[0] - start

    def rounds(self, sides: dict[str, Callable[[Path], object]]) -> dict[str, tuple[float, float]]:
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for _ in range(self.options.rounds):
            for name, make in sides.items():
                found[name].append(self.timed(make))
        return {name: tuple(map(statistics.median, zip(*pairs, strict=True))) for name, pairs in found.items()}

    # The tables

    def overhead(self) -> None:
        jobs, home = self.options.jobs, self.fresh()
        path = recipe(home, jobs)
        run = ("run", path, "--quiet", "--no-report", "--out")
        sides: dict[str, Callable[[Path], object]] = {
            "a loop that saves": lambda out: self.call("plain", out, jobs),
            "the same, synced": lambda out: self.call("synced", out, jobs),
            "genkit run": lambda out: self.genkit(*run, out),
            "genkit run --workers 1": lambda out: self.genkit(*run, out, "--workers", 1),
            "genkit run --workers 2": lambda out: self.genkit(*run, out, "--workers", 2),
        }
        if _has("ray"):
            sides["genkit run --engine ray, 2 actors"] = lambda out: self.genkit(
                *run, out, "--engine", "ray", "--workers", 2
            )
        if all(map(_has, ("ray", "pandas", "pyarrow"))):
            sides["Ray Data map_batches, 2 actors"] = lambda out: self.call("ray", out, jobs)
        found = self.rounds(sides)
        synced = found["the same, synced"][0]
        sync, load = _sync_cost(home) * 1e3, os.getloadavg()[0]
        print(
            f"Overhead: {jobs} jobs, {self.options.rounds} rounds; a sync takes {sync:.2f} ms here, load {load:.1f}\n"
        )
        print("| side | ms a job | jobs a second | / synced loop | s to the first file |")
        print("| --- | --- | --- | --- | --- |")
        for name, (each, first) in found.items():
            print(f"| {name} | {each * 1e3:.2f} | {1 / each:.0f} | {each / synced:.2f} | {first:.1f} |")

    def workers(self) -> None:
        jobs = max(20, self.options.jobs // 10)
        path = recipe(self.fresh(), jobs, "bench-work", rounds=self.options.work)
        run = ("run", path, "--quiet", "--no-report", "--out")
        found = self.rounds(
            {str(n): lambda out, n=n: self.genkit(*run, out, "--workers", n) for n in (1, 2)}  # type: ignore[misc]
        )
        one, two = found["1"][0], found["2"][0]
        print(f"Workers: {jobs} jobs that compute, {self.options.rounds} rounds, load {os.getloadavg()[0]:.1f}\n")
        print("| workers | ms a job | gain |\n| --- | --- | --- |")
        print(f"| 1 | {one * 1e3:.1f} | 1.00 |\n| 2 | {two * 1e3:.1f} | {one / two:.2f} |")

    def resume(self) -> None:
        print(f"Resume: nothing to do; load {os.getloadavg()[0]:.1f}\n")
        print("| jobs | s, the whole command | s of the processor | MB at most |\n| --- | --- | --- | --- |")
        for jobs in self.options.resumed:
            home = self.fresh()
            path, out = recipe(home, jobs), home / "out"
            self.call("fill", path, out)
            self.genkit("run", path, "--quiet", "--out", out)  # the report, once
            runs = [self.genkit("run", path, "--quiet", "--out", out) for _ in range(self.options.rounds)]
            seconds, processor, memory = map(statistics.median, zip(*runs, strict=True))
            print(f"| {jobs:,} | {seconds:.2f} | {processor:.2f} | {memory:.0f} |", flush=True)

    def plan(self) -> None:
        print("Planning\n\n| jobs | us of the processor a job | MB beyond what is loaded |\n| --- | --- | --- |")
        for jobs in self.options.resumed:
            path = recipe(self.fresh(), jobs)
            runs = [self.call("plan", path, jobs) for _ in range(self.options.rounds)]
            seconds, memory = (statistics.median(run[key] for run in runs) for key in ("seconds", "megabytes"))
            print(f"| {jobs:,} | {seconds / jobs * 1e6:.0f} | {memory:.0f} |", flush=True)

    def driver(self) -> None:
        jobs = self.options.jobs * 10
        print(f"Driver: {jobs:,} jobs that cost nothing (two workers: {self.options.jobs:,})\n")
        print(
            "| outcomes at once | us of processor a job | us of clock a job | jobs a second at most | a job of", end=""
        )
        print(f" {GPUS:,} GPUs must take, s |\n| --- | --- | --- | --- | --- |")
        for wave in (1, 8, 64, 0):
            count = jobs if wave else self.options.jobs
            runs = []
            for _ in range(self.options.rounds):
                home = self.fresh()
                runs.append(self.call("drive", recipe(home, count), home / "out", wave))
            cpu, clock = (statistics.median(run[key] for run in runs) for key in ("processor", "clock"))
            # With workers the clock is theirs; the driver's share of it is its processor time.
            limit = 1e6 / (clock if wave else cpu)
            cells = [wave or "as two workers give", f"{cpu:.0f}", f"{clock:.0f}", f"{limit:.0f}", f"{GPUS / limit:.2f}"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


def _has(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None


def _sync_cost(folder: Path) -> float:
    """The median time of one fsync of a new file of a kilobyte, in s."""
    times = []
    for i in range(50):
        with (folder / f"sync{i}").open("wb") as file:
            file.write(b"x" * 1000)
            file.flush()
            start = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    tables = ("overhead", "workers", "resume", "plan", "driver")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=tables, default=tables)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--resumed", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--work", type=int, default=100, help="thousand rounds of hashing in a job that computes")
    parser.add_argument("--folder", type=Path, help="where files go, on the disk that is to be measured")
    parser.add_argument("--quick", action="store_true", help="200 jobs, one round, no 100,000")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        print(json.dumps(ROLES[options.role[0]](*options.role[1:])))
        return
    if options.quick:
        options.jobs, options.rounds, options.resumed = 200, 1, [1000, 10_000]
    with tempfile.TemporaryDirectory(prefix="genkit-bench-", dir=options.folder) as folder:
        bench = Bench(Path(folder), options)
        for name in options.only:
            getattr(bench, name)()
            print(flush=True)


if __name__ == "__main__":
    main()
