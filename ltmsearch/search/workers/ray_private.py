"""The private switches of Ray that the search needs; `pyproject.toml` bounds the version, a test checks them."""

import os
import sys
from typing import Any

LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's environment variable for systems whose firewall asks: if it is 0, its services listen on loopback only,
otherwise on all interfaces, whatever address they are given. Ray reads it once, when it is imported."""


def silence_worker_logs(ray: Any) -> None:
    """Stop Ray from printing errors of workers to standard output; they are reported as notes."""
    ray._private.worker._worker_logs_enabled = False


def listen_on_loopback(ray: Any) -> None:
    """Set the switch of `LOOPBACK`, also if Ray was imported for a cluster before."""
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False


def allow_clusters(ray: Any) -> None:
    """Undo `listen_on_loopback`, so that this process can join a cluster."""
    if os.environ.get(LOOPBACK) == "0":
        del os.environ[LOOPBACK]
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = sys.platform.startswith("linux")
