"""How the processes of a launch find each other: pipes between the first and each of the others.

The launch's own store of keys and values, whose place is in the environment, has room for a few words: there rank 0
leaves the address of a socket and a key, and who knows the key is let in. What goes through a pipe is pickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import struct
import time
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import ProcessError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

from genkit.errors import GenkitError

__all__ = ["Peer", "board", "connected", "met"]

JOIN = 300.0  # seconds that ranks wait for each other
ANSWER = 30  # seconds that somebody at the socket has to show that he knows the key
NAME = "genkit"  # in the launch's store


@dataclass
class Peer:
    """Another rank, as rank 0 sees it. turns: worker processes that it was told to start."""

    rank: int
    host: str
    pipe: Connection
    turns: int = 0
    gone: bool = False

    def send(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # it is gone, and will be found so
            self.pipe.send(message)


def board() -> Any:
    """The launch's store of keys and values."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torch.distributed import rendezvous

    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=JOIN)))
    except (RuntimeError, ValueError) as error:
        raise GenkitError(
            f"the processes of this launch do not find each other: {str(error).splitlines()[0]}"
        ) from None
    return store


def met(store: Any, host: str, world: int) -> list[Peer]:
    """Every other rank, in order."""
    key, until = secrets.token_bytes(32), time.monotonic() + JOIN
    peers: list[Peer] = []
    with _listening(host) as server:
        store.set(NAME, json.dumps({"host": host, "port": server.getsockname()[1], "key": key.hex()}))
        while len(peers) < world - 1:
            server.settimeout(max(0.01, until - time.monotonic()))
            try:
                accepted, _ = server.accept()
            except TimeoutError:
                raise GenkitError(f"{len(peers) + 1} of the {world} processes of this launch turned up") from None
            with contextlib.suppress(EOFError, OSError, ValueError, ProcessError):  # somebody else's
                peers.append(_peer(accepted, key))
    return sorted(peers, key=lambda peer: peer.rank)


def _listening(host: str) -> socket.socket:
    with contextlib.suppress(OSError):
        return socket.create_server((host, 0))
    return socket.create_server(("", 0))  # the machine's name is known outside only


def _peer(accepted: socket.socket, key: bytes) -> Peer:
    pipe = _pipe(accepted)
    try:
        deliver_challenge(pipe, key)
        answer_challenge(pipe, key)
        rank, host = pipe.recv()
    except BaseException:
        pipe.close()
        raise
    _patience(pipe, 0)
    return Peer(rank, host, pipe)


def _pipe(sock: socket.socket) -> Connection:
    """Its other end is found to be gone within two minutes even if its machine lost its power."""
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    pipe = Connection(sock.detach())
    _patience(pipe, ANSWER)
    return pipe


def _patience(pipe: Connection, seconds: int) -> None:
    """How long it is listened to in vain; 0: for ever."""
    with socket.socket(fileno=os.dup(pipe.fileno())) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, 0))


def connected(store: Any, rank: int) -> Connection:
    told = json.loads(store.get(NAME))
    pipe = _pipe(socket.create_connection((told["host"], told["port"]), JOIN))
    answer_challenge(pipe, bytes.fromhex(told["key"]))
    deliver_challenge(pipe, bytes.fromhex(told["key"]))
    pipe.send((rank, socket.gethostname()))
    _patience(pipe, 0)
    return pipe
