"""Whether an output folder holds what its journal says: every file there, of its digest, sound, and made by its job.

Reads and never locks or writes. What the plan has and nobody made yet is no fault, nor is a file that somebody else put
there; both are told. Files of which only the size is asked (`quick`) are not opened.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from genkit.batch import journal, report
from genkit.batch.journal import FOLDER, Done, Made, State
from genkit.batch.plan import Plan
from genkit.batch.reporting import contact
from genkit.batch.store import BESIDE, STAGING, Folder, Store
from genkit.errors import GenkitError
from genkit.pipeline import Progress, silent

if TYPE_CHECKING:
    from genkit.media.provenance import Provenance

__all__ = ["Fault", "Findings", "Look", "fault_of", "look", "verify", "walk"]

_TEMPORARY = re.compile(r"\..*\.genkit-[0-9a-f]+\.tmp", re.DOTALL)
Kind = Literal["missing", "size", "content", "unreadable", "record", "leftover", "journal"]


@dataclass(frozen=True)
class Look:
    """A file as it lies there. made: as the journal would enter it; record: how it says it was made; error: why it
    cannot be read; changed: what comes out of it is not what the record says, to be asked where no digest of the file
    is known, since readers of JPEG and MP3 differ in the last bit."""

    made: Made
    record: Provenance | None = None
    error: str = ""
    changed: bool = False


@dataclass(frozen=True)
class Fault:
    """Something that is not as it should be, in words. file: from the folder down."""

    file: str
    kind: Kind
    says: str


@dataclass
class Findings:
    """files, bytes: that were looked at; jobs, done: of the plan; doubtful: outputs that `repair` set aside, to be made
    again; gone: files of jobs that are no longer in the plan, and were taken away; unknown: files that the journal does
    not know; runner: who works there meanwhile."""

    files: int = 0
    bytes: int = 0
    jobs: int | None = None
    done: int = 0
    doubtful: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    runner: str = ""


def verify(store: Store, plan: Plan | None, *, quick: bool = False, progress: Progress = silent) -> Findings:
    """Looks at everything. progress: counts files. Raises GenkitError if the journal or the plan cannot be read."""
    found = Findings(runner=journal.owner(store.home))
    state = journal.read(store.home)
    if state.damaged:
        lines = "line is" if state.damaged == 1 else "lines are"
        found.faults.append(Fault(f"{FOLDER}/{journal.NAME}", "journal", f"{state.damaged} {lines} damaged"))
    ids = {job.output: job.id for job in plan.jobs} if plan else {}
    if plan:
        found.jobs = len(ids)
        found.done = sum(done.job == ids.get(output) for output, done in state.done.items())
    total = sum(len(done.files) for done in state.done.values() if done.job)
    outputs: dict[str, Done] = {}  # by file, of those with a fault
    for done in state.done.values():
        if not done.job:
            found.doubtful.append(done.output)
            continue
        for made in done.files:
            if _take(store, done, made, found, quick, planned=plan is None or done.output in ids):
                outputs[made.path] = done
            progress(found.files + len(found.gone), total)
    found.runner = found.runner or journal.owner(store.home)
    if outputs and found.runner:  # what a runner has made anew meanwhile, or is at, is another file by now
        now = journal.read(store.home)
        found.faults = [one for one in found.faults if _stands(outputs.get(one.file), now)]
    if isinstance(store, Folder):
        _strays(store.root, {made.path for done in state.done.values() for made in done.files}, found)
    return found


def _stands(done: Done | None, now: State) -> bool:
    return done is None or (now.done.get(done.output) == done and done.output not in now.running)


def _take(store: Store, done: Done, made: Made, found: Findings, quick: bool, *, planned: bool) -> bool:
    """Looks at a file. Whether something is wrong with it."""
    fault = _size_fault(store, made) if quick else fault_of(look(store, made.path), made, done.job)
    if fault and fault[0] == "missing" and not planned:
        found.gone.append(made.path)
        return False
    found.files += 1
    found.bytes += made.bytes
    if fault:
        found.faults.append(Fault(made.path, *fault))
    return fault is not None


def _size_fault(store: Store, made: Made) -> tuple[Kind, str] | None:
    if store.in_place(made):
        return None
    return ("size", _OTHER_SIZE) if store.exists(made.path) else ("missing", _MISSING)


_MISSING = "is not there"
_OTHER_SIZE = "has another size than was written"


def fault_of(seen: Look | None, made: Made, job: str) -> tuple[Kind, str] | None:
    """What is wrong with a file of a job, by what the journal has of it; None if nothing is."""
    if seen is None:
        return "missing", _MISSING
    if not seen.made.sha256:
        return "unreadable", seen.error
    if seen.made.bytes != made.bytes:
        return "size", _OTHER_SIZE
    if seen.made.sha256 != made.sha256:
        return "content", "has another content than was written"
    if seen.error:
        return "unreadable", seen.error
    if seen.record is None or seen.record.job != job:
        return "record", "does not carry the record of its job" if seen.record is None else "is another job's"
    return None


def look(store: Store, name: str) -> Look | None:
    """Reads a file, all of it; None if there is none."""
    from genkit.media import provenance

    made, record = Made(name, "", 0), None
    try:
        with store.local(name) as path:
            made = Made(name, provenance.digest_file(path), path.stat().st_size)
            record = provenance.read(path) or _beside(store, name)
            content = _content(path)
    except FileNotFoundError:
        return None
    except (GenkitError, OSError) as error:
        return Look(made, record, f"cannot be read: {error}")
    return Look(made, record, changed=record is not None and record.content not in (None, content))


def _beside(store: Store, name: str) -> Provenance | None:
    """A record in a file of its own, of a store that hands out one file at a time."""
    from genkit.media.provenance import Provenance

    with contextlib.suppress(FileNotFoundError), store.local(f"{name}{BESIDE}") as path:
        return Provenance.from_json(path.read_bytes(), name=f"the genkit record of {name!r}")
    return None


def _content(path: Path) -> str:
    """The digest of what is in a file, which is decoded to its end for it; a sound block by block. Raises
    MediaError."""
    from genkit.media import files, provenance

    kind, _ = files.kind_of(path) or ("", "")
    if kind == "audio":
        from genkit.media.recording import Recording

        return Recording.open(path).digest()
    return str((provenance.decode(path, kind) if kind else provenance.open_media(path)).digest())


def walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder but those in its `.genkit`, links not followed."""
    for place, folders, names in os.walk(folder):
        if Path(place) == folder and FOLDER in folders:
            folders.remove(FOLDER)
        folders.sort()
        yield from (Path(place, name) for name in sorted(names))


def _strays(root: Path, known: set[str], found: Findings) -> None:
    """What lies in the folder beside what the journal has."""
    known = known | {f"{name}{BESIDE}" for name in known} | {report.NAME, contact.NAME}
    left = [*walk(root / FOLDER / STAGING), *(root / FOLDER).glob(".*.genkit-*.tmp")]
    for path in walk(root):
        name = path.relative_to(root).as_posix()
        if _TEMPORARY.fullmatch(path.name):
            left.append(path)
        elif name not in known:
            found.unknown.append(name)
    for path in () if found.runner else left:  # a runner that lives has them in its hands
        found.faults.append(Fault(path.relative_to(root).as_posix(), "leftover", "was left by a killed run"))
