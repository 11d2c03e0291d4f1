"""What every test shares: no network, few threads, and three small pipelines installed the way a third party would.

Tests are fast and offline. A socket to anything but this machine raises, in the test process itself; child processes
are told to stay offline through the environment.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GENKIT_DEVICE", "cpu")  # the same results on a machine that happens to have a GPU
# A shell that starts the tests in the background has them, and what they start, ignore an interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

LOCAL = ("127.", "::1", "localhost", "0.0.0.0")
PLUGIN = Path(__file__).parent / "plugin"


class NetworkBlockedError(RuntimeError):
    """Not an OSError, so that code which survives a lost connection still fails its test."""


def _refuse(address: Any) -> None:
    host = address[0] if isinstance(address, tuple) else address
    if isinstance(host, bytes):
        host = host.decode()
    if isinstance(address, tuple) and host and not str(host).startswith(LOCAL):
        raise NetworkBlockedError(f"a test reached for the network: {address!r}")


def _guarded(method: str) -> Any:
    original = getattr(socket.socket, method)

    def call(self: socket.socket, *args: Any) -> Any:
        if self.family != getattr(socket, "AF_UNIX", None):
            _refuse(args[-1])  # connect(address), sendto(data, [flags,] address)
        return original(self, *args)

    return call


def pytest_configure() -> None:
    """Blocks the network before the first test module is imported."""
    for method in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, method, _guarded(method))
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
        _refuse((host,))
        return resolve(host, *args, **options)

    socket.getaddrinfo = getaddrinfo


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data beside the checkout; a test that needs it is skipped where there is none."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("no ../shared beside this checkout")
    return path


@pytest.fixture
def noise_pipeline(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Installs tests/plugin (`test-noise`, `test-tone`, `test-tune`) as a third party's package; gives "test-noise".

    Child processes see it too, through PYTHONPATH.
    """
    from genkit import registry

    monkeypatch.syspath_prepend(str(PLUGIN))
    inherited = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(PLUGIN), inherited))))
    registry._entries.cache_clear()
    yield "test-noise"
    registry._entries.cache_clear()
