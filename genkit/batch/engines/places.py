"""Where the actors of a cluster go: one for each GPU, or for every few cores of a cluster without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["CPUS", "Place", "on_gpus", "places"]

CPUS = 4
"""Cores of an actor: a network is no faster on many more, and each actor holds the model."""


class Place(NamedTuple):
    """node: its id; host: its name."""

    node: str
    host: str
    cpus: int
    gpus: int


def places(nodes: Sequence[Mapping[str, Any]], device: str | None = None, workers: int | None = None) -> list[Place]:
    """Every place for an actor: the first of each node, then the second ones, so that a few are spread over all.

    nodes: as `ray.nodes()` tells of those that live; device: the kind that was asked for, None for the best there is;
    workers: how many are wanted, which makes an actor of a CPU smaller if there is no room for as many otherwise.
    """
    gpus = on_gpus(nodes, device)
    cores = sum(map(_cores, nodes))
    cpus = max(1, min(CPUS, cores // workers)) if workers else CPUS
    rows = [_of_gpus(node, cpus) if gpus else _of_cores(node, cpus) for node in nodes]
    turns = range(max(map(len, rows), default=0))
    return [row[turn] for turn in turns for row in rows if turn < len(row)]


def on_gpus(nodes: Sequence[Mapping[str, Any]], device: str | None) -> bool:
    """Whether actors hold a GPU each."""
    return device == "cuda" or (device is None and any(node["Resources"].get("GPU", 0) >= 1 for node in nodes))


def _of_gpus(node: Mapping[str, Any], cpus: int) -> list[Place]:
    gpus = int(node["Resources"].get("GPU", 0))
    share = min(cpus, _cores(node) // max(1, gpus))
    return [Place(node["NodeID"], node["NodeManagerHostname"], share, 1)] * gpus


def _of_cores(node: Mapping[str, Any], cpus: int) -> list[Place]:
    cores = _cores(node)
    share = min(cpus, cores)
    return [Place(node["NodeID"], node["NodeManagerHostname"], share, 0)] * (cores // share if share else 0)


def _cores(node: Mapping[str, Any]) -> int:
    return int(node["Resources"].get("CPU", 0))
