"""Places for actors, told from what a cluster says of its nodes."""

from __future__ import annotations

from typing import Any

import pytest

from genkit.batch.places import Place, on_gpus, places


def node(name: str, **resources: float) -> dict[str, Any]:
    return {"NodeID": name, "NodeManagerHostname": f"host-{name}", "Resources": {"memory": 1e9, **resources}}


def test_an_actor_for_each_gpu_the_first_of_each_node_before_the_second() -> None:
    cluster = [node("head", CPU=8), node("a", CPU=16, GPU=2), node("b", CPU=4, GPU=4)]
    found = places(cluster)
    assert [place.node for place in found] == ["a", "b", "a", "b", "b", "b"]
    assert all(place.gpus == 1 for place in found)
    assert {place.node: place.cpus for place in found} == {"a": 4, "b": 1}
    assert found[0].host == "host-a"


@pytest.mark.parametrize(
    ("cores", "workers", "expected"),
    [((8, 4), None, [4, 4, 4]), ((1, 2), None, [1, 2]), ((8, 4), 6, [2, 2, 2, 2, 2, 2]), ((0, 3), None, [3])],
)
def test_without_gpus_a_few_cores_for_each(cores: tuple[int, ...], workers: int | None, expected: list[int]) -> None:
    cluster = [node(str(i), CPU=count) if count else node(str(i)) for i, count in enumerate(cores)]
    found = places(cluster, workers=workers)
    assert [place.cpus for place in found] == expected
    assert all(place.gpus == 0 for place in found)
    taken = {str(i): sum(place.cpus for place in found if place.node == str(i)) for i in range(len(cores))}
    assert all(taken[str(i)] <= count for i, count in enumerate(cores))


def test_the_device_that_was_asked_for_decides() -> None:
    cluster = [node("a", CPU=8, GPU=1), node("b", CPU=4)]
    assert {place.node for place in places(cluster, "cuda")} == {"a"}
    assert places(cluster, "cpu") == [
        Place("a", "host-a", 4, 0),
        Place("b", "host-b", 4, 0),
        Place("a", "host-a", 4, 0),
    ]
    assert places([node("b", CPU=4)], "cuda") == []
    assert not on_gpus([node("b", CPU=4)], None)
    assert places([]) == []
