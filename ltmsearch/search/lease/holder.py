"""The process that drives a study, described so that other processes can find out whether it still runs."""

import getpass
import os
import secrets
import socket
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Self

from filelock import lock_descriptor
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

_PROC = Path("/proc")


class Holder(BaseModel):
    """A driver that holds the lease of a study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: str
    """Random, different for every lease."""
    user: str
    host: str
    """Only shown: several hosts may have the same name."""
    machine: str
    """The boot of a machine and its mount namespace: processes that share it see the same files and locks."""
    pid: int
    file: str
    """The file that the holder keeps locked while it runs, and that contains its token."""
    started: AwareDatetime

    @classmethod
    def this_process(cls, file: Path) -> Self:
        return cls(
            token=secrets.token_hex(8),
            user=_user(),
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            file=str(file.absolute()),
            started=datetime.now().astimezone().replace(microsecond=0),
        )

    def has_ended(self) -> bool | None:
        """Whether the holder has ended or lost its lease; None if only its heartbeats can show that."""
        if self.machine != _machine():
            return None
        try:
            with open(self.file, "rb+") as file:
                return self.token.encode() not in file.read() or _is_unlocked(file.fileno())
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # not permitted, or the file system has no locks
            return None

    def __str__(self) -> str:
        return f"{self.user}@{self.host}, process {self.pid}, since {self.started.astimezone():%Y-%m-%d %H:%M:%S}"


class Record(NamedTuple):
    """The holder of a lease, as a run directory or a storage records it."""

    text: str
    """A `Holder` as JSON."""
    heartbeat: float
    """Time of the last heartbeat by the holder's clock, which may differ from the reader's."""

    @property
    def holder(self) -> Holder | None:
        """None if the text is damaged."""
        with suppress(ValidationError):
            return Holder.model_validate_json(self.text)
        return None

    def __str__(self) -> str:
        return str(self.holder) if self.holder is not None else "an unknown process, as its record is damaged"


def _is_unlocked(descriptor: int) -> bool:
    for _ in range(3):  # another process may be trying at the same moment
        if lock_descriptor(descriptor, blocking=False):
            return True
        time.sleep(0.01)
    return False


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # users of containers often have no name
        return f"user {os.getuid()}"


def _machine() -> str:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/mnt')}"
    except OSError:
        return socket.gethostname()
