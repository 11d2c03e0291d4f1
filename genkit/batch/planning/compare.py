"""Two plans for one output folder: what differs, in words, and what becomes of it.

A folder is made by one plan. Another one for it is refused, because the usual cause is a slip (a changed prompt, an
input saved over) and the work of a night is at stake; who means it says so: `extend` adds jobs and touches nothing that
is there, `anew` puts the new plan in the old one's place, and what it changes is made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from genkit.batch import plan as plans
from genkit.batch.job import Job
from genkit.batch.plan import Plan
from genkit.batch.planning.template import shown
from genkit.errors import PlanChanged

__all__ = ["Difference", "compare", "extended", "settle"]

TOLD = 10  # differences that are told one by one


@dataclass
class Difference:
    """added, removed, changed: how many jobs, an output standing for a job; lines: the first of them in words."""

    added: int = 0
    removed: int = 0
    changed: int = 0
    lines: list[str] = field(default_factory=list)

    def tell(self, line: str) -> None:
        if len(self.lines) < TOLD:
            self.lines.append(line)

    def __str__(self) -> str:
        counts = {"changed": self.changed, "new": self.added, "no longer in it": self.removed}
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def settle(plan: Plan, folder: Path, *, extend: bool = False, anew: bool = False) -> Plan:
    """The plan that a run of a folder is to carry out, which the folder now has. Raises PlanChanged."""
    old = None if anew else plans.read(folder)
    if old is not None:
        found = compare(old, plan)
        if str(found) and (found.changed or not extend):
            raise PlanChanged(_refusal(folder, found, extend), found.lines)
        plan = extended(old, plan) if found.removed else plan
    if old is None or not _same(old, plan):
        plans.write(plan, folder)
    return plan


def _refusal(folder: Path, found: Difference, extend: bool) -> str:
    remedy = "--replace makes it as the recipe says now"
    if not extend and not found.changed:
        remedy = f"--extend adds what is new and keeps the rest, {remedy}"
    jobs = "job" if found.added + found.changed + found.removed == 1 else "jobs"
    return f"{str(folder)!r} was made by another plan ({jobs}: {found}); {remedy}, or choose another folder"


def _same(old: Plan, new: Plan) -> bool:
    """To the letter: inputs may have moved while their content stayed."""
    if old.outline != new.outline or len(old.jobs) != len(new.jobs):
        return False
    return all(a == b for a, b in zip_longest(old.jobs.lines(), new.jobs.lines()))


def compare(old: Plan, new: Plan) -> Difference:
    """What a new plan would do to a folder that has an old one."""
    found = Difference()
    if old.digest == new.digest:
        return found
    known = {job.output: (i, job.id, job.renders) for i, job in enumerate(old.jobs)}
    for job in new.jobs:
        before = known.pop(job.output, None)
        if before is None:
            found.added += 1
            found.tell(f"+ {job.output}")
        elif before[1:] != (job.id, job.renders):
            found.changed += 1
            found.tell(f"~ {job.output}: {_change(old.jobs[before[0]], job)}")
    found.removed = len(known)
    for output in known:
        found.tell(f"- {output}")
    return found


def extended(old: Plan, new: Plan) -> Plan:
    """The jobs of the old plan and those that the new one adds, by stage. Where both know an output the old job
    stays."""
    known = {job.output for job in old.jobs}
    stages = {stage.name: stage for stage in (*old.outline.stages, *new.outline.stages)}

    def jobs() -> Iterator[Job]:
        for name in stages:
            yield from (job for job in old.jobs if job.stage == name)
            yield from (job for job in new.jobs if job.stage == name and job.output not in known)

    about = new.outline
    return plans.gather(replace(about, stages=tuple(stages.values())), jobs())


def _change(old: Job, new: Job) -> str:
    """The first thing that makes a job another one."""
    before, now = _facts(old), _facts(new)
    for key in {**before, **now}:
        if before.get(key) != now.get(key):
            return f"{key} {_brief(before.get(key))} -> {_brief(now.get(key))}"
    changed = [name for name in {**old.inputs, **new.inputs} if old.inputs.get(name) != new.inputs.get(name)]
    if changed:
        return f"{changed[0]} is another file than it was"
    if new.takes:
        return "what it takes from an earlier stage is made otherwise"
    return "its model, or the pipeline itself, is another one than it was"


def _facts(job: Job) -> dict[str, Any]:
    files = {name.partition("[")[0] for name in (*job.inputs, *job.takes)}
    params = {name: value for name, value in job.params.items() if name not in files}
    return {"pipeline": job.pipeline, "model": job.model, **params, "render": list(job.renders)}


def _brief(value: Any) -> str:
    text = shown(value)
    return text if len(text) <= 40 else text[:39] + "…"
