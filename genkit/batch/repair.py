"""The journal of an output folder brought in line with the files there, which are the truth.

    damaged lines            dropped; the journal as it was is kept beside
    files without a line     entered, if all files of a job are there, sound, and carry its id
    lines without their file are left: the next run makes it again
    files that are no good   marked by a line of no job, so that the next run may write over them; one that no line and
                             no record claims, under a name of the plan, is moved aside to NAME.broken
    anybody else's files     left alone, and told

Whatever else the journal knows (failures, quarantine, times) stays, since its lines stay. Without a plan the jobs are
known by the records of their files alone: what was still to do is then known by nobody, and of a piece with several
renderings not their order; the next run of the recipe looks at these itself.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from genkit.batch import plan as plans
from genkit.batch.job import Job
from genkit.batch.journal import Done, Journal, Made
from genkit.batch.plan import Plan
from genkit.batch.store import Folder
from genkit.batch.verify import Look, fault_of, look, walk
from genkit.errors import GenkitError
from genkit.pipeline import Progress, silent

__all__ = ["Repaired", "repair"]


@dataclass
class Repaired:
    """What was done. lines: dropped from the journal; kept: the journal as it was, if any were; sound: outputs whose
    lines are right; entered: outputs that got a line; again: outputs that the next run makes again, and why; aside:
    files that were moved, old name and new; strangers: files of others under names of the plan; former: outputs that
    are no good, and that the plan has no longer; planned: there is a plan."""

    lines: int = 0
    kept: Path | None = None
    sound: int = 0
    entered: list[str] = field(default_factory=list)
    again: dict[str, str] = field(default_factory=dict)
    aside: dict[str, str] = field(default_factory=dict)
    strangers: list[str] = field(default_factory=list)
    former: list[str] = field(default_factory=list)
    planned: bool = True


def repair(store: Folder, progress: Progress = silent) -> Repaired:
    """Reads every file of the batch. progress: counts jobs. Raises Locked if a run has the folder, DiskFull,
    GenkitError."""
    with Journal(store.home, mend=True) as journal:
        store.begin()
        return _Repair(store, journal, progress).run()


class _Repair:
    def __init__(self, store: Folder, journal: Journal, progress: Progress) -> None:
        self.store, self.journal, self.progress = store, journal, progress
        self.result = Repaired(journal.dropped, journal.kept)
        self.new: list[Done] = []
        self.mistaken: set[str] = set()  # outputs whose lines are wrong, and not their files

    def run(self) -> Repaired:
        plan = self._plan()
        self.result.planned = plan is not None
        if plan and not self.journal.state.plan:
            about = plan.outline
            self.journal.plan(recipe=about.name, digest=about.digest, plan=plan.digest, jobs=len(plan.jobs))
        doubtful = self._check_lines(len(plan.jobs) if plan else 0)
        if plan:
            self._look_for(plan, doubtful)
        else:
            self._gather(doubtful)
        for output, done in doubtful.items():
            self._disown(done)
            if plan:
                del self.result.again[output]
                self.result.former += [output] * any(self.store.exists(made.path) for made in done.files)
        self.journal.enter(*self.new)
        return self.result

    def _plan(self) -> Plan | None:
        """The folder's plan; one that cannot be read is moved out of the way."""
        try:
            plan = plans.read(self.store.home)
            return plan if plan is None or all(True for _ in plan.jobs) else None
        except GenkitError:
            path = self.store.home / plans.PATH
            _aside(path, "old")
            return None

    # What the journal has

    def _check_lines(self, more: int) -> dict[str, Done]:
        """Entries of which something is not as it should be."""
        entries, doubtful = self.journal.state.done, {}
        for step, done in enumerate(entries.values(), 1):
            why = self._why(done)
            if why:
                doubtful[done.output] = done
                self.result.again[done.output] = why
            else:
                self.result.sound += 1
            self.progress(step, len(entries) + more)
        return doubtful

    def _why(self, done: Done) -> str:
        """What is wrong with a job's entry or files; empty if nothing is."""
        if not done.job:
            return "was no good before"
        inputs = {}
        for made in done.files:
            seen = look(self.store, made.path)
            if fault := fault_of(seen, made, done.job):
                return f"{made.path!r} {fault[1]}"
            if seen and seen.record:
                inputs = {name: given.sha256 for name, given in seen.record.inputs.items()}
        if not done.inputs.items() <= inputs.items():
            self.mistaken.add(done.output)
            return "its line in the journal tells other inputs than its files do"
        return ""

    def _disown(self, done: Done) -> None:
        """Has an entry's job made again, over what there is of its files."""
        if done.job:
            self.new.append(Done("", done.output, tuple(made for made in done.files if self.store.exists(made.path))))

    # What a plan has

    def _look_for(self, plan: Plan, doubtful: dict[str, Done]) -> None:
        entries = self.journal.state.done
        before = len(entries)
        for step, job in enumerate(plan.jobs, 1):
            if job.output not in entries or job.output in doubtful:
                known = doubtful.pop(job.output, None)
                if known and known.job == job.id and job.output not in self.mistaken:  # it is the files that are wrong
                    self._disown(known)
                elif done := self._found(job):
                    self._enter(done)
                elif known:
                    self._disown(known)
                else:
                    self._settle(job)
            self.progress(before + step, before + len(plan.jobs))

    def _enter(self, done: Done) -> None:
        self.new.append(done)
        self.result.entered.append(done.output)
        self.result.again.pop(done.output, None)

    def _found(self, job: Job) -> Done | None:
        """A job's entry, by its files; None unless all of them are there, sound and its own."""
        made = self._alone(job.output) or self._several(job.output)
        made += [seen for name in job.renders if (seen := look(self.store, name))]
        if not made or not all(_is_sound(seen, job.id) for seen in made):
            return None
        if not {seen.made.path for seen in made}.issuperset(job.renders) or len(made) == len(job.renders):
            return None
        return _entry(job.id, job.output, made, job.takes)

    def _alone(self, output: str) -> list[Look]:
        seen = look(self.store, output)
        return [seen] if seen and seen.record and seen.record.count is None else []

    def _several(self, output: str) -> list[Look]:
        """All of several files, `-1`, `-2`, ..., in order; none if one is missing."""
        first = look(self.store, _numbered(output, 1))
        count = first.record.count if first and first.record else None
        if first is None or count is None:
            return []
        found = [first, *(look(self.store, _numbered(output, number)) for number in range(2, count + 1))]
        return [seen for seen in found if seen] if all(found) else []

    def _settle(self, job: Job) -> None:
        """Of a job that is not done: what stands where its files are to be."""
        own: list[Made] = []
        for name in job.names:
            seen = look(self.store, name)
            if seen and seen.record and seen.record.job == job.id:
                own.append(seen.made)
            elif seen and seen.record is None and seen.error:
                self.result.aside[name] = _aside(self.store.root / name, "broken").name
            elif seen:
                self.result.strangers.append(name)
        several = list(self._numbers(job.output))
        if any(seen.record and seen.record.job == job.id for seen in several):
            own += [seen.made for seen in several if not seen.record or seen.record.job == job.id]
        if own:
            self.new.append(Done("", job.output, tuple(own)))
            self.result.again[job.output] = "not all of its files are there and sound"

    def _numbers(self, output: str) -> Iterator[Look]:
        for number in itertools.count(1):
            if (seen := look(self.store, _numbered(output, number))) is None:
                return
            yield seen

    # What there is without a plan

    def _gather(self, doubtful: dict[str, Done]) -> None:
        """Entries by the records of the files alone."""
        sound = (done for output, done in self.journal.state.done.items() if output not in doubtful)
        known = {made.path for done in sound for made in done.files}
        jobs: defaultdict[tuple[str, str], list[Look]] = defaultdict(list)
        rendered: defaultdict[str, list[Look]] = defaultdict(list)
        for path in walk(self.store.root):
            name = path.relative_to(self.store.root).as_posix()
            seen = None if name in known else look(self.store, name)
            if seen is None or seen.record is None or not seen.record.job or not _is_sound(seen, seen.record.job):
                continue
            if seen.record.rendered:
                rendered[seen.record.job].append(seen)
            else:
                jobs[seen.record.job, _output(seen)].append(seen)
        outputs = Counter(job for job, _ in jobs)
        for (job, output), files in jobs.items():
            files.sort(key=lambda seen: seen.record.index if seen.record else 0)
            whole = len(files) == ((files[0].record and files[0].record.count) or 1)
            if whole and len(rendered[job]) < 2 and outputs[job] == 1:
                doubtful.pop(output, None)
                self._enter(_entry(job, output, [*files, *rendered[job]]))


def _is_sound(seen: Look, job: str) -> bool:
    """Whether a file is a job's, as it was written, as far as the file alone can tell."""
    return not seen.error and not seen.changed and seen.record is not None and seen.record.job == job


def _entry(job: str, output: str, files: Sequence[Look], takes: Collection[str] | None = None) -> Done:
    """An entry by what files say of themselves. takes: which inputs earlier stages made, if that is known."""
    record = files[0].record
    given = record.inputs if record else {}
    inputs = {
        name: one.sha256 for name, one in given.items() if (_from_here(one.path) if takes is None else name in takes)
    }
    degraded = record.runtime.get("memory", "") if record else ""
    return Done(job, output, tuple(seen.made for seen in files), inputs, degraded=degraded)


def _from_here(path: str | None) -> bool:
    """Whether an input was made by an earlier stage: those are recorded from the file's own place."""
    return path is not None and not Path(path).is_absolute() and "://" not in path


def _output(seen: Look) -> str:
    """The output that a file is, or is one of."""
    path = PurePosixPath(seen.made.path)
    record = seen.record
    if record is None or record.count is None:
        return str(path)
    return str(path.with_stem(path.stem.removesuffix(f"-{record.index + 1}")))


def _numbered(output: str, number: int) -> str:
    path = PurePosixPath(output)
    return str(path.with_stem(f"{path.stem}-{number}"))


def _aside(path: Path, suffix: str) -> Path:
    """Moves a file to a free name beside it."""
    number, target = 1, path.with_name(f"{path.name}.{suffix}")
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.{suffix}{number}")
    path.rename(target)
    return target
