"""What a crew (`genkit.batch.engines.crew`) asks of a cluster: the seam behind which Ray is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from genkit.batch.engines.places import Place

__all__ = ["Cluster", "Lost"]


class Lost(Exception):
    """An actor, or whatever was asked, answers no more. reason: how it ended, in words, if that is known; node: because
    of its node, as far as can be told; hopeless: another one would fare no better."""

    def __init__(self, reason: str = "", *, node: bool = False, hopeless: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.node, self.hopeless = reason, node, hopeless


class Cluster(Protocol):
    """What an engine asks of a cluster. Actors and results are its own things, to be handed back to it."""

    def joined(self) -> AbstractContextManager[None]:
        """While it lasts the cluster can be asked. Raises InputError if there is none."""

    def nodes(self) -> list[dict[str, Any]]:
        """Those that live, as Ray tells of them."""

    def hire(self, place: Place, *arguments: Any) -> Any:
        """A `Maker`, as soon as its place is free."""

    def call(self, actor: Any, method: str, *arguments: Any) -> Any:
        """Has an actor do something; the result comes."""

    def knock(self, node: str, file: str) -> Any:
        """A result that comes if a node answers: the end of a file there."""

    def put(self, content: bytes) -> Any:
        """Content that may be an argument of several calls."""

    def come(self, results: Sequence[Any], seconds: float) -> list[Any]:
        """Those results that have come, waiting a while for the first."""

    def get(self, result: Any) -> Any:
        """Raises Lost."""

    def kill(self, actor: Any) -> None: ...
