"""Stopping and going on equals never stopping; sums are the sums they should be; nothing else disturbs training."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from genkit_test_tasks import Gan, Memory, Regress
from torch import nn

from genkit.errors import GenkitError, InputError, Locked, ModelError
from genkit.training import checkpoint
from genkit.training.stopping import Stopped, locked
from genkit.training.task import Task

TASKS = {"regress": Regress, "gan": Gan, "memory": Memory}


def metrics(path: Path, *prefixes: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if k == "step" or k.startswith(prefixes or "")} for line in lines]
    return [line for line in kept if len(line) > 1]


def everything(trainer: Any) -> dict[str, Any]:
    """All that a run consists of, flat."""
    state: dict[str, Any] = {"step": trainer.step, "position": trainer.position, "random": torch.get_rng_state()}
    for name, module in trainer.task.modules.items():
        state |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    if trainer.average:
        state |= {f"ema.{key}": value for key, value in trainer.average.weights.items()}
    parts = {
        "task": trainer.task.state_dict(),
        "optimizers": {n: o.state_dict() for n, o in trainer.task.optimizers.items()},
    }
    return state | _flat(parts)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{path}.{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, item in enumerate(value) for k, v in _flat(item, f"{path}.{i}").items()}
    return {path: value}


def assert_equal(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        same = torch.equal(value, two[key]) if isinstance(value, torch.Tensor) else value == two[key]
        assert same, key


def stop_at(step: int, number: int = signal.SIGTERM) -> Any:
    def progress(done: int, total: int, **_: Any) -> None:
        if done == step:
            os.kill(os.getpid(), number)

    return progress


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_stopped_by_a_signal_and_resumed_is_the_run_that_never_stopped(
    trainer: Any, tmp_path: Path, kind: str, accumulate: int
) -> None:
    values: dict[str, Any] = {"ema": 0.9, "clip": 1.0, "accumulate": accumulate, "validate_every": 3}
    whole = trainer(TASKS[kind], "whole", **values)
    assert whole.train().finished

    stopped = trainer(TASKS[kind], "parts", progress=stop_at(4), **values)
    with pytest.raises(Stopped) as raised:
        stopped.train()
    assert raised.value.exit_status == 143
    resumed = trainer(TASKS[kind], "parts", **values)
    torch.rand(3)  # what happened in this process before must not matter
    assert resumed.train(resume=True).finished

    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "parts/metrics.jsonl").read_text()
    assert_equal(everything(whole), everything(resumed))


def test_numbers_logged_after_the_checkpoint_are_logged_once(trainer: Any, tmp_path: Path) -> None:
    """Killed between checkpoints: the steps since the last one are done again, and their lines written again."""

    def die(done: int, total: int, **_: Any) -> None:
        if done == 6:
            raise KeyboardInterrupt

    whole = trainer(Gan, "whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        trainer(Gan, "parts", progress=die, checkpoint={"every": 4}).train()
    with (tmp_path / "parts/metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "tra')
    trainer(Gan, "parts", checkpoint={"every": 4}).train(resume=True)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")


def test_interrupt_has_its_own_status(trainer: Any) -> None:
    with pytest.raises(Stopped) as raised:
        trainer(Regress, progress=stop_at(2, signal.SIGINT)).train()
    assert raised.value.exit_status == 130
    assert "--resume" in str(raised.value)


def test_two_batches_of_two_make_the_step_of_one_batch_of_four(trainer: Any, tmp_path: Path) -> None:
    joined, halves = trainer(Regress, "a", batch_size=4), trainer(Regress, "b", batch_size=2, accumulate=2)
    joined.train()
    halves.train()
    for one, two in zip(metrics(tmp_path / "a", "train"), metrics(tmp_path / "b", "train"), strict=True):
        assert one["train/loss"] == pytest.approx(two["train/loss"], rel=1e-5)
    for one, two in zip(joined.task.modules["net"].parameters(), halves.task.modules["net"].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_a_loss_reaches_only_the_optimisers_it_is_given_to(trainer: Any) -> None:
    run = trainer(Gan)
    g, d = run.task.modules["g"], run.task.modules["d"]
    run.gradients.begin(0)
    run.backward(d(g(torch.rand(2, 3, 8, 8))).mean(), "g")
    assert all(p.grad is not None for p in g.parameters())
    assert all(p.grad is None for p in d.parameters())
    run.backward(d(g(torch.rand(2, 3, 8, 8))).mean(), "g", "d")
    assert all(p.grad is not None for p in d.parameters())


def test_clipping_bounds_the_gradient(trainer: Any) -> None:
    run = trainer(Regress, clip=0.01)
    run.gradients.begin(0)
    before = [p.detach().clone() for p in run.task.modules["net"].parameters()]
    run.backward(1000 * run.task.modules["net"](torch.rand(2, 3, 8, 8)).mean())
    run.update()
    after = run.task.modules["net"].parameters()
    moved = torch.cat([(a - b.detach()).flatten() for a, b in zip(before, after, strict=True)])
    assert float(moved.norm()) == pytest.approx(0.01 * 1e-2, rel=1e-3)  # SGD's first step: rate times gradient
    assert run.gradients.norms["net"] > 1


def test_validation_and_samples_do_not_touch_training(trainer: Any, tmp_path: Path) -> None:
    values: dict[str, Any] = {"ema": 0.5, "task": {"noise": 0.1}}
    plain, watched = trainer(Regress, "a", **values), trainer(Regress, "b", validate_every=1, sample_every=2, **values)
    plain.train()
    watched.train()
    assert metrics(tmp_path / "a", "train") == metrics(tmp_path / "b", "train")
    assert len(list((tmp_path / "b/samples").glob("*.png"))) == 5
    assert watched.task.modules["net"].training


def test_validation_sees_the_averaged_weights(trainer: Any, tmp_path: Path) -> None:
    run = trainer(Regress, ema=0.9, validate_every=10)
    run.train()
    seen = metrics(tmp_path / "run", "valid")[-1]["valid/error"]
    with run.average.applied():
        assert run.task.validate()["error"] == pytest.approx(seen, rel=1e-6)
    assert run.task.validate()["error"] != pytest.approx(seen, rel=1e-3)


def test_the_best_checkpoint_is_kept_and_exported(trainer: Any, tmp_path: Path) -> None:
    run = trainer(
        Regress, steps=30, task={"rate": 0.3}, validate_every=1, export="best", checkpoint={"every": 30, "keep_last": 1}
    )
    result = run.train()
    errors = {line["step"]: line["valid/error"] for line in metrics(tmp_path / "run", "valid")}
    best = min(errors, key=lambda step: errors[step])
    assert result.best == {"step": best, "name": "error", "value": errors[best]}
    assert set(checkpoint.steps(tmp_path / "run/checkpoints")) == {best, 30}
    assert run.task.validate()["error"] == pytest.approx(errors[best])


def test_it_learns(trainer: Any, tmp_path: Path) -> None:
    trainer(Regress, steps=60, task={"rate": 0.1}).train()
    losses = [line["train/loss"] for line in metrics(tmp_path / "run", "train")]
    assert losses[-1] < losses[0] / 5


@pytest.mark.parametrize("log_every", [1, 50])
def test_a_loss_that_is_no_number_stops_before_it_is_saved(trainer: Any, tmp_path: Path, log_every: int) -> None:
    with pytest.raises(GenkitError, match=r"^loss is (nan|inf) at step \d+; .*--resume$") as raised:
        trainer(Regress, steps=50, task={"rate": 1e20}, checkpoint={"every": 1}, log_every=log_every).train()
    step = int(str(raised.value).split(" at step ")[1].split(";")[0])
    assert max(checkpoint.steps(tmp_path / "run/checkpoints")) == step - 1


def test_bf16_trains(trainer: Any, tmp_path: Path) -> None:
    run = trainer(Regress, steps=40, precision="bf16", task={"rate": 0.1})
    run.train()
    losses = [line["train/loss"] for line in metrics(tmp_path / "run", "train")]
    assert losses[-1] < losses[0] / 3
    assert run.task.modules["net"][0].weight.dtype == torch.float32


def test_fp16_on_a_cpu_is_refused(trainer: Any) -> None:
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        trainer(Regress, precision="fp16")


def test_time_is_up(trainer: Any, tmp_path: Path) -> None:
    result = trainer(Regress).train(max_minutes=0)
    assert (result.step, result.finished) == (1, False)
    assert (tmp_path / "run/export/net.safetensors").is_file()
    assert trainer(Regress).train(resume=True).finished


def test_a_finished_run_says_so_and_more_steps_go_on(trainer: Any) -> None:
    trainer(Regress).train()
    said: list[str] = []
    assert trainer(Regress, say=said.append).train(resume=True).step == 10
    assert any("finished, at step 10" in line for line in said)
    assert trainer(Regress, steps=12, say=said.append).train(resume=True).step == 12
    assert "the recipe has changed: steps: 10 -> 12" in said


def test_a_folder_with_a_run_is_not_written_over(trainer: Any, tmp_path: Path) -> None:
    trainer(Regress).train()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="holds a run already; go on with it by --resume"):
        trainer(Regress).train()
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert trainer(Regress, steps=3).train(restart=True).step == 3
    assert list(checkpoint.steps(tmp_path / "run/checkpoints")) == [3]


def test_one_folder_has_one_trainer(trainer: Any, tmp_path: Path) -> None:
    pid = os.fork()  # record locks are between processes
    if pid == 0:
        try:
            with locked(tmp_path / "run"):
                (tmp_path / "held").touch()
                signal.pause()
        finally:
            os._exit(0)
    try:
        while not (tmp_path / "held").exists():
            pass
        with pytest.raises(Locked, match="another process is training"):
            trainer(Regress).train()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert trainer(Regress).train().finished


def test_another_network_does_not_take_the_checkpoint(trainer: Any) -> None:
    trainer(Regress).train()
    with pytest.raises(ModelError, match=r"does not fit the recipe's network: .*start anew with --out$"):
        trainer(Regress, steps=20, task={"channels": 5}).train(resume=True)
    with pytest.raises(ModelError, match="has no module 'g'; it belongs to another task"):
        trainer(Gan, steps=20).train(resume=True)


def test_several_updates_a_step(trainer: Any) -> None:
    class Critic(Regress):
        def step(self, batch: Any, trainer: Any) -> Any:
            super().step(batch, trainer)
            return super().step(batch, trainer)

    run = trainer(Critic, ema=0.5)
    run.train()
    assert run.average.updates == 10
    with pytest.raises(InputError, match="several times a step"):
        trainer(Critic, "other", accumulate=2).train()


def test_a_state_that_would_need_code_to_load_is_refused_when_saved(trainer: Any, tmp_path: Path) -> None:
    class Careless(Regress):
        def state_dict(self) -> dict[str, Any]:
            return {"path": Path("x")}

    with pytest.raises(GenkitError, match="give tensors, numbers"):
        trainer(Careless).train()
    assert not checkpoint.steps(tmp_path / "run/checkpoints")
    assert not list((tmp_path / "run/checkpoints").glob(".*"))


def test_tied_weights_are_saved(trainer: Any) -> None:
    class Tied(Regress):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            a, b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            b.weight = a.weight
            self.modules = {"net": nn.Sequential(a, b)}
            self.optimizers = {"net": torch.optim.SGD(self.modules["net"].parameters(), 0.1)}

    first = trainer(Tied, ema=0.9)
    first.train()
    again = trainer(Tied, ema=0.9, steps=11)
    again.train(resume=True)
    assert again.task.modules["net"][0].weight is again.task.modules["net"][1].weight


def test_a_task_must_say_what_it_is(trainer: Any) -> None:
    with pytest.raises(NotImplementedError, match="has no dataset"):
        trainer(Task)


def test_tensorboard_holds_the_numbers(trainer: Any, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer(Regress, validate_every=5, sample_every=5).train()
    events = accumulator.EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    found = {event.step: event.value for event in events.Scalars("train/loss")}
    assert found == pytest.approx({line["step"]: line["train/loss"] for line in metrics(tmp_path / "run", "train")})
    assert [event.step for event in events.Images("sample/inverted")] == [5, 10]
