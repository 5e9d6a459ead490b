"""Connect to Ray, on this machine or on a running cluster, and check at once that it has enough CPUs and GPUs."""

import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltmsearch.config.settings import StudySettings
from ltmsearch.errors import InputError
from ltmsearch.search.workers.ray_private import LOOPBACK, allow_clusters, listen_on_loopback, silence_worker_logs

_log = logging.getLogger(__name__)

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no reports to Ray's developers
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a future default; without it Ray warns
}
_LOCAL_ENVIRONMENT = {
    LOOPBACK: "0",
    "RAY_AUTH_MODE": "token",  # clients must know ~/.ray/auth_token, which Ray creates
}
"""Environment variables that Ray reads when it is imported, unless the user has set them."""
CONNECT_SECONDS = 10
"""Time that a cluster may take to answer."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """A connection to Ray."""

    ray: Any
    where: str
    """`this machine`, or the cluster's address."""
    gpus: float
    machines: int
    local: bool
    """Whether Ray was started for this run, and ends with it."""

    def close(self) -> None:
        self.ray.shutdown()
        if self.local:
            allow_clusters(self.ray)


def needs_ray(settings: StudySettings) -> bool:
    return settings.workers > 1 or settings.ray_address is not None


def connect(settings: StudySettings) -> Connection:
    """Start Ray on this machine, on loopback as far as it allows, or connect to a cluster.

    Raises:
        InputError: If Ray is missing, the cluster does not answer, or there are too few CPUs or GPUs for the workers,
            in which case Ray would wait for ever.
    """
    local = settings.ray_address is None
    environment = _ENVIRONMENT | (_LOCAL_ENVIRONMENT if local else {})
    if not local and _has_token():
        environment["RAY_AUTH_MODE"] = "token"  # clusters without tokens accept it
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        option = "--workers" if local else "--ray-address"
        raise InputError(f"{option} needs Ray: pip install 'ltmsearch[ray]'") from None
    silence_worker_logs(ray)
    with _keep_signal_handlers():
        if settings.ray_address is None:
            listen_on_loopback(ray)
            ray.init(
                address="local", num_cpus=settings.workers, include_dashboard=False, log_to_driver=False,
                configure_logging=False,
            )  # fmt: skip
        else:
            _join(ray, settings.ray_address)
    resources = ray.cluster_resources()
    connection = Connection(
        ray=ray,
        where="this machine" if local else f"the cluster at {settings.ray_address}",
        gpus=resources.get("GPU", 0),
        machines=sum(node["Alive"] for node in ray.nodes()),
        local=local,
    )
    _log.info("Ray on %s: %s", connection.where, resources)
    try:
        check_resources(settings, cpus=resources.get("CPU", 0), gpus=connection.gpus, where=connection.where)
    except InputError:
        connection.close()
        raise
    return connection


@contextmanager
def _keep_signal_handlers() -> Iterator[None]:
    """Restore the handlers of Ctrl-C and SIGTERM: Ray's handler of SIGTERM ends the process at once."""
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
    rule = "--ray-address must be a running Ray cluster, auto or HOST:PORT, but"
    host, colon, port = address.rpartition(":")
    if address != "auto":
        if not colon or not port.isdigit() or "/" in host:
            raise InputError(f"{rule} got {address!r}; `ray start --head` prints it")
        try:  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{rule} {address} cannot be reached ({reason})") from None
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # its ten lines repeat the error below
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError, AssertionError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        token = "" if _has_token() else "; if it needs a token, write it to ~/.ray/auth_token (ray get-auth-token)"
        raise InputError(f"{rule} {address} cannot be used ({reason}{token})") from None


def _has_token() -> bool:
    named = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return named or Path("~/.ray/auth_token").expanduser().is_file()


def check_resources(settings: StudySettings, *, cpus: float, gpus: float, where: str) -> None:
    """Raise `InputError` unless all workers can run at once."""
    if settings.workers > cpus:
        raise InputError(f"--workers must be at most the CPUs of {where}, {cpus:g}, but got {settings.workers}")
    share = settings.gpus_per_worker
    if not share:
        return
    if not gpus:
        raise InputError(
            f"--gpus-per-worker must be 0 as {where} has no GPUs, but got {share:g}: use --gpus-per-worker 0 with "
            "--device cpu"
        )
    fit = int(gpus // share) if share >= 1 else int(gpus) * int(1 / share + 1e-9)
    if settings.workers > fit:
        advice = f"--workers {fit}" if fit else f"--gpus-per-worker {min(1.0, gpus):g}"
        raise InputError(
            f"--workers {settings.workers} with --gpus-per-worker {share:g} need more than the {gpus:g} GPUs of "
            f"{where}: use {advice}"
        )


def gpu_share(settings: StudySettings, *, device: str, gpus: float) -> float:
    """GPUs per worker: the user's choice, else on CUDA an equal part of all GPUs, at most one."""
    if settings.gpus_per_worker is not None:
        return settings.gpus_per_worker
    if device != "cuda" or not gpus:
        return 0.0
    per_gpu = math.ceil(settings.workers / gpus)
    return 1.0 if per_gpu <= 1 else math.floor(1e4 / per_gpu) / 1e4
