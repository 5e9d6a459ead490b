"""The way to Ray: on this machine alone, or a cluster that runs already; refused at once where it cannot serve."""

import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltmsearch.config.settings import StudySettings
from ltmsearch.errors import InputError

_log = logging.getLogger(__name__)

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would tell its makers
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what it will do anyway, without a warning
}
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's switch for systems whose firewall asks: where it is 0, its services listen on loopback alone. Otherwise they do
on all interfaces, whatever address they are given."""
_ALONE = {
    _LOOPBACK: "0",
    "RAY_AUTH_MODE": "token",  # who connects must know what stands in ~/.ray/auth_token, which Ray makes
}
"""What Ray reads when it is imported, unless the user has told it otherwise; the second for this machine alone."""
CONNECT_SECONDS = 10
"""How long a cluster may take to answer."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Ray, connected."""

    ray: Any
    """The module."""
    where: str
    """`this machine`, or the cluster's address."""
    gpus: float
    """Of all machines."""
    machines: int
    """How many."""
    local: bool
    """Whether Ray was started for this run, and ends with it."""

    def close(self) -> None:
        """Let go of Ray; what was started for this run ends."""
        self.ray.shutdown()
        if self.local and os.environ.get(_LOOPBACK) == "0":  # else a cluster could not be joined from this process
            del os.environ[_LOOPBACK]
            self.ray._private.ray_constants.ENABLE_RAY_CLUSTER = sys.platform.startswith("linux")


def wanted(settings: StudySettings) -> bool:
    """Whether a study asks for workers on Ray."""
    return settings.workers > 1 or settings.ray_address is not None


def connect(settings: StudySettings) -> Connection:
    """Start Ray on this machine, on loopback as far as it allows, or connect to a cluster.

    Args:
        settings: Of the study.

    Raises:
        InputError: If Ray is missing, the cluster does not answer, or it lacks CPUs or GPUs for the workers, for which
            Ray would wait for ever.
    """
    environment = _ENVIRONMENT | (_ALONE if settings.ray_address is None else {})
    if settings.ray_address is not None and _token_known():
        environment["RAY_AUTH_MODE"] = "token"  # a cluster that asks for none takes no offence
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        option = "--workers" if settings.ray_address is None else "--ray-address"
        raise InputError(f"{option} needs Ray: pip install 'ltmsearch[ray]'") from None
    # Ray prints what it says of workers that died to standard output, where results stand; we say it ourselves.
    ray._private.worker._worker_logs_enabled = False
    if settings.ray_address is None:
        # Ray reads the switch when it is imported, which another run in this process may have done for a cluster.
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    with _signals_kept():
        if settings.ray_address is None:
            ray.init(
                address="local", num_cpus=settings.workers, include_dashboard=False, log_to_driver=False,
                configure_logging=False,
            )  # fmt: skip
        else:
            _join(ray, settings.ray_address)
    resources = ray.cluster_resources()
    connection = Connection(
        ray=ray,
        where="this machine" if settings.ray_address is None else f"the cluster at {settings.ray_address}",
        gpus=resources.get("GPU", 0),
        machines=sum(node["Alive"] for node in ray.nodes()),
        local=settings.ray_address is None,
    )
    _log.info("Ray on %s: %s", connection.where, resources)
    try:
        refuse_what_it_lacks(settings, cpus=resources.get("CPU", 0), gpus=connection.gpus, where=connection.where)
    except InputError:
        connection.close()
        raise
    return connection


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Leave Ctrl-C and SIGTERM to whoever had them: Ray takes the latter, to end the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _join(ray: Any, address: str) -> None:
    rule = "--ray-address must be a Ray cluster that runs, auto or HOST:PORT, but"
    host, colon, port = address.rpartition(":")
    if address != "auto":
        if not colon or not port.isdigit() or "/" in host:
            raise InputError(f"{rule} got {address!r}; `ray start --head` prints it")
        try:  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise InputError(
                f"{rule} {address} cannot be reached ({getattr(error, 'strerror', None) or error})"
            ) from None
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # it says in ten lines what the error says in one
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError, AssertionError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        token = "" if _token_known() else "; if it asks for a token, put it into ~/.ray/auth_token (ray get-auth-token)"
        raise InputError(f"{rule} {address} cannot be used ({reason}{token})") from None


def _token_known() -> bool:
    """Whether Ray finds the token here that a cluster may ask for."""
    named = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return named or Path("~/.ray/auth_token").expanduser().is_file()


def refuse_what_it_lacks(settings: StudySettings, *, cpus: float, gpus: float, where: str) -> None:
    """Raise unless all workers can run at once.

    Raises:
        InputError: With what would do.
    """
    if settings.workers > cpus:
        raise InputError(f"--workers {settings.workers} needs a CPU each, but {where} has {cpus:g}")
    share = settings.gpus_per_worker
    if not share:
        return
    if not gpus:
        raise InputError(
            f"--gpus-per-worker {share:g} needs GPUs, but {where} has none: --gpus-per-worker 0 would do, with "
            "--device cpu"
        )
    fit = int(gpus // share) if share >= 1 else int(gpus) * int(1 / share + 1e-9)
    if settings.workers > fit:
        advice = f"--workers {fit}" if fit else f"--gpus-per-worker {min(1.0, gpus):g}"
        raise InputError(
            f"--workers {settings.workers} with --gpus-per-worker {share:g} need more than the {gpus:g} GPUs that "
            f"{where} has: {advice} would do"
        )


def gpu_share(settings: StudySettings, *, device: str, gpus: float) -> float:
    """GPUs of each worker: as told, else on CUDA an equal part of all that there are, one at most.

    Args:
        settings: Of the study.
        device: Type of the study's device.
        gpus: Of the cluster.
    """
    if settings.gpus_per_worker is not None:
        return settings.gpus_per_worker
    if device != "cuda" or not gpus:
        return 0.0
    per_gpu = math.ceil(settings.workers / gpus)
    return 1.0 if per_gpu <= 1 else math.floor(1e4 / per_gpu) / 1e4
