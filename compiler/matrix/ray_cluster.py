"""A connection to a Ray cluster, or to a Ray of this machine that ends with it.

There is no dashboard, and nothing is told to anybody but the cluster.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from qcompile.compiler.ir.errors import MissingPackageError, OutputError

_LOCAL = "local"
_HEAD = (sys.executable, "-P", "-m", "qcompile.compiler.matrix.ray_head")
_SECONDS_TO_REACH, _SECONDS_TO_END = 10, 20
_ON_A_NODE = "give the HOST:PORT of a cluster's head, on one of the cluster's machines"


def check_installed() -> None:
    """Refuse if there is no Ray.

    Raises:
        MissingPackageError: It is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingPackageError("ray", "ray")


@contextmanager
def connected(address: str | None, jobs: int) -> Iterator[Any]:
    """Give the module ``ray``, connected to a cluster; the connection is gone on the way out.

    Args:
        address: Of the cluster; ``RAY_ADDRESS`` by default, and without it Ray is started on this machine.
        jobs: Tasks at once that a Ray of this machine has room for.

    Raises:
        OutputError: The cluster cannot be reached, or Ray cannot be started.
    """
    address = address or os.environ.get("RAY_ADDRESS") or _LOCAL
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with _local(jobs) if address == _LOCAL else nullcontext(address) as found:
        import ray

        try:
            _connect(ray, found)
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def _local(jobs: int) -> Iterator[str]:
    """Give the address of a Ray of this machine, which ends on the way out."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # as of local builds; Ray's own is 15
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray writes one to ~/.ray
    cpus = str(max(jobs, os.cpu_count() or 1))
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    head = subprocess.Popen(
        (*_HEAD, cpus), stdin=pipe, stdout=pipe, stderr=null, start_new_session=True
    )
    try:
        yield _address(head)
    finally:
        _end(head)


def _address(head: subprocess.Popen[bytes]) -> str:
    assert head.stdout is not None
    found = json.loads(head.stdout.readline() or "{}")
    if "address" not in found:
        why = found.get("error", "its process ended")
        raise OutputError(f"Ray cannot be started on this machine: {why}")
    return str(found["address"])


def _end(head: subprocess.Popen[bytes]) -> None:
    for stream in (head.stdin, head.stdout):
        if stream is not None:
            stream.close()
    try:
        head.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        head.kill()
        head.wait()


def _connect(ray: Any, address: str) -> None:
    try:
        _reach(address)
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", None) or first_line(error).partition(". ")[0]
        said = f"the Ray cluster {address} cannot be reached ({why}): {_ON_A_NODE}"
        raise OutputError(said) from error


def _reach(address: str) -> None:
    """Look whether anything listens there, which Ray does for minutes.

    Raises:
        OSError: Nothing does.
        ValueError: It is no address of a machine.
    """
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not host or "/" in host or not port.isdigit() or int(port) > 65535:
        raise ValueError("it is not HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_REACH).close()


def first_line(error: BaseException) -> str:
    """Return what an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
