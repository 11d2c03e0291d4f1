"""The engine of a Ray cluster: a crew (`genkit.batch.engines.crew`) of plain actors.

Ray starts nothing again by itself (`max_restarts=0, max_task_retries=0`), and it ends the actors when their runner
dies; what one of them may still put into its place is what the next run makes too, byte for byte.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from genkit.batch.engines.actor import Maker
from genkit.batch.engines.cluster import Lost
from genkit.batch.engines.crew import Crew
from genkit.batch.engines.places import Place
from genkit.batch.store import Store
from genkit.errors import InputError

try:
    import ray
    from ray.exceptions import ActorDiedError, RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise InputError(f"a Ray cluster needs a package ({error}): pip install 'genkit-media[ray]'") from None

__all__ = ["Ray"]

OBJECTS = 256 << 20  # bytes of memory for objects, in a cluster started here
SILENT = (
    ":job_id:",
    ":actor_name:",
    ":task_name:",
    "Extension modules: ",
)  # lines of a worker's stderr that tell nothing
REACHED = 10.0  # seconds in which a cluster has to answer
NO_CLUSTER = "no Ray cluster at {!r} ({}); start one (`ray start --head`), with the same RAY_AUTH_MODE and token"


class Ray(Crew):
    """address: of a cluster ("auto": the one of this machine), None for the one that RAY_ADDRESS names, else one that
    is started here for the run; the others: as of a `Crew`."""

    def __init__(self, store: Store, *, address: str | None = None, **options: Any) -> None:
        super().__init__(_Cluster(address), store, path=[entry for entry in sys.path if entry], **options)


class _Cluster:
    def __init__(self, address: str | None) -> None:
        self.address = address

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """A caller's own connection is used as it is."""
        if ray.is_initialized():
            yield
            return
        _connect(self.address or os.environ.get("RAY_ADDRESS") or "local")
        try:
            yield
        finally:
            ray.shutdown()

    def nodes(self) -> list[dict[str, Any]]:
        return [node for node in ray.nodes() if node["Alive"]]

    def hire(self, place: Place, *arguments: Any) -> Any:
        kind = ray.remote(Maker).options(
            num_cpus=place.cpus,
            num_gpus=place.gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=_on(place.node),
            runtime_env={"env_vars": _environment()},
        )
        return kind.remote(*arguments)

    def call(self, actor: Any, method: str, *arguments: Any) -> Any:
        return getattr(actor, method).remote(*arguments)

    def knock(self, node: str, file: str) -> Any:
        return _end_of.options(scheduling_strategy=_on(node)).remote(file)

    def put(self, content: bytes) -> Any:
        return ray.put(content)

    def come(self, results: Sequence[Any], seconds: float) -> list[Any]:
        ray.wait(list(results), timeout=seconds)
        return list(ray.wait(list(results), num_returns=len(results), timeout=0)[0])

    def get(self, result: Any) -> Any:
        try:
            return ray.get(result)
        except (RayError, OSError) as error:
            # Of an actor that has died Ray knows how. One that cannot be reached may be alive, its node cut off.
            known = isinstance(error, ActorDiedError | RayTaskError)
            hopeless = bool(getattr(error, "actor_init_failed", False))
            raise Lost(_reason(error), node=not known, hopeless=hopeless) from error

    def kill(self, actor: Any) -> None:
        with contextlib.suppress(RayError, ValueError):
            ray.kill(actor)


@ray.remote(num_cpus=0, max_retries=0)
def _end_of(file: str) -> str:
    try:
        text = Path(file).read_text("utf-8", "replace") if file else ""
    except OSError:
        return ""
    return "\n".join(line for line in text.splitlines() if not line.startswith(SILENT))[-4000:]


def _on(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)


def _reason(error: Exception) -> str:
    """What Ray tells of the end of an actor, in a few words; it does not know a SIGKILL from a fault."""
    text = str(error)
    if "exit code" in text:
        return f"ended by itself (exit status {text.rpartition('exit code')[2].strip(' .')[:4]})"
    if "OutOfMemory" in text or "low on memory" in text:
        return "ran out of memory and was killed"
    if getattr(error, "actor_init_failed", False) or isinstance(error, RayTaskError):
        return f"failed: {text.strip().splitlines()[-1][:300]}"
    return ""


def _environment() -> dict[str, str]:
    """What actors take over of the runner's environment."""
    ours = {name: value for name, value in os.environ.items() if name.startswith("GENKIT_")}
    ours |= {name: os.environ[name] for name in ("HF_HUB_OFFLINE",) if name in os.environ}
    return {name: value for name, value in ours.items() if name not in ("GENKIT_HOME", "GENKIT_DEVICE")}


def _connect(address: str) -> None:
    """Raises InputError."""
    if address.startswith("ray://"):
        raise InputError(f"{address}: give HOST:PORT of the cluster, and run genkit on one of its machines")
    _reach(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    here: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECTS} if address == "local" else {}
    with _handlers_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **here)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(NO_CLUSTER.format(address, reason)) from error
    # Else Ray writes what it thinks of a lost node to stdout, where our data goes.
    ray._private.worker._worker_logs_enabled = False


def _reach(address: str) -> None:
    """Waits a moment for a cluster that is being started; Ray would try for minutes. Raises InputError."""
    host, _, port = address.rpartition(":")
    until = time.monotonic() + REACHED
    while host and port.isdigit():
        try:
            return socket.create_connection((host.strip("[]"), int(port)), REACHED).close()
        except OSError as error:
            if time.monotonic() > until:
                raise InputError(NO_CLUSTER.format(address, error.strerror or error)) from None
            time.sleep(0.5)


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself; here it is a wish to stop."""
    ours = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items() if ours else ():
            signal.signal(number, handler)
