"""The queue: a loaded model stays warm, what may share a call does, nothing is lost and nothing handed out twice."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from genkit.batch.job import Job
from genkit.batch.queue import AHEAD, WAITING, Queue, Waits

TWO_MODELS = """\
stages:
- {name: one, pipeline: test-noise, params: {width: 4, height: 4}, matrix: {model: [a, b], seed: [1, 2, 3, 4]}}
- {name: two, pipeline: test-noise, files: {content: {stage: one}}}
"""


def at_once(number: int, job: Job) -> Job:
    return job


@pytest.fixture
def noises(noise_pipeline: str) -> Callable[..., list[Job]]:
    """Jobs of test-noise, made by hand; keys are told apart by their width."""

    def made(count: int, *, keys: int = 1, model: str | None = None, stage: str = "one") -> list[Job]:
        return [
            Job(
                f"{stage}{model}{i}", stage, i, noise_pipeline, model, {"width": 1 + i % keys, "seed": i}, f"{stage}{i}"
            )
            for i in range(count)
        ]

    return made


def filled(jobs: list[Job], **options: int) -> Queue:
    queue = Queue(jobs, **options)
    for number, job in enumerate(jobs):
        queue.add(number, job)
    return queue


def drained(queue: Queue) -> list[list[Job]]:
    found = []
    warm = None
    while (batch := queue.take(warm, 0, at_once)) is not None:
        found.append(batch)
        warm = (batch[0].pipeline, batch[0].model)
    return found


def test_every_job_is_handed_out_once_stage_by_stage_and_model_by_model(noises) -> None:
    jobs = [job for i in range(6) for job in (noises(6, model="a")[i], noises(6, model="b")[i])]
    jobs += noises(3, stage="two")
    order = [(batch[0].stage, batch[0].model) for batch in drained(filled(jobs))]
    assert order == [("one", "a")] * 6 + [("one", "b")] * 6 + [("two", None)] * 3


def test_a_worker_is_given_what_its_model_is_loaded_for(noises) -> None:
    queue = filled([*noises(3, model="a"), *noises(3, model="b")])
    first = queue.take(None, 0, at_once)
    second = queue.take(None, 1, at_once)  # the other model, since somebody is at the first
    assert [batch[0].model for batch in (first, second)] == ["a", "b"]
    for worker, model in ((1, "b"), (0, "a"), (1, "b"), (0, "a")):
        assert queue.take(("test-noise", model), worker, at_once)[0].model == model
    assert queue.take(None, 0, at_once) is None


def test_jobs_of_one_key_share_a_batch_whatever_lies_between_them(noises) -> None:
    jobs = noises(20, keys=3)
    batches = drained(filled(jobs, batch=4))
    assert all(len({job.params["width"] for job in batch}) == 1 for batch in batches)
    assert sorted(job.output for batch in batches for job in batch) == sorted(job.output for job in jobs)
    assert max(map(len, batches)) == 4


def test_a_batch_leaves_something_for_every_worker(noises) -> None:
    queue = filled(noises(6), batch=16, workers=3)
    assert [len(batch) for batch in drained(queue)] == [2, 2, 1, 1]


def test_the_first_batch_does_not_wait_for_all_keys_to_be_read(noises) -> None:
    jobs = noises(4 * AHEAD, keys=4000)
    queue = filled(jobs, batch=8)
    asked = 0
    original = queue.jobs

    class Counting(list):
        def __getitem__(self, index):
            nonlocal asked
            asked += 1
            return original[index]

    queue.jobs = Counting(original)
    assert queue.take(None, 0, at_once)
    assert asked <= AHEAD + 8
    assert 1 + sum(map(len, drained(queue))) == len(jobs)


def test_a_job_that_failed_comes_back_first_and_alone(noises) -> None:
    jobs = noises(6)
    queue = filled(jobs, batch=3)
    batch = queue.take(None, 0, at_once)
    for job in batch:
        queue.again(int(job.output.removeprefix("one")), job)
    assert [queue.take(None, 0, at_once) for _ in range(3)] == [[job] for job in batch]
    assert len(queue.take(None, 0, at_once)) == 3


def test_a_pause_is_kept(noises, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("genkit.batch.queue.time.monotonic", lambda: now)
    jobs = noises(1)
    queue = filled(jobs)
    queue.take(None, 0, at_once)
    assert queue.wait() is None
    queue.again(0, jobs[0], after=4)
    assert (queue.take(None, 0, at_once), queue.wait()) == (None, 4)
    now = 104.0
    assert queue.take(None, 0, at_once) == jobs


def test_jobs_wait_for_their_inputs_and_others_go_ahead(noises) -> None:
    jobs = noises(3 * WAITING)
    queue = filled(jobs)
    there = {len(jobs) - 1, 1}

    def ready(number: int, job: Job) -> Job:
        if number not in there:
            raise Waits
        return job

    assert queue.take(None, 0, ready) == [jobs[1]]
    assert queue.take(None, 0, ready) is None  # the last one lies beyond what is looked at
    there.update(range(len(jobs)))
    left = drained(queue)
    assert sorted(int(job.output[3:]) for batch in left for job in batch) == [0, *range(2, len(jobs))]


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_lost_or_handed_out_twice_whatever_happens(noises, seed: int) -> None:
    """Several workers, random failures, inputs that come late: a model of a whole run."""
    draw = random.Random(seed)
    first = noises(draw.randrange(1, 60), keys=draw.randrange(1, 4), model=draw.choice([None, "a"]))
    jobs = [*first, *noises(40, model="b"), *noises(30, keys=2, stage="two")]
    queue = filled(jobs, batch=draw.randrange(0, 6), workers=3)
    numbers = {id(job): number for number, job in enumerate(jobs)}
    running: dict[int, list[Job]] = {}
    made: list[int] = []
    for _ in range(10_000):
        worker = draw.randrange(3)
        if worker in running:
            for job in running.pop(worker):
                if draw.random() < 0.2:
                    queue.again(numbers[id(job)], job)
                else:
                    made.append(numbers[id(job)])
            continue

        def ready(number: int, job: Job) -> Job:
            if job.stage == "two" and draw.random() < 0.3:
                raise Waits
            return job

        batch = queue.take(None, worker, ready)
        if batch is not None:
            assert len({(job.stage, job.model, job.params["width"]) for job in batch}) == 1
            running[worker] = batch
        elif not running and len(made) == len(jobs):
            break
    assert sorted(made) == list(range(len(jobs)))
