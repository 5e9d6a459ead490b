"""A process that drives a study, told so that another can find out whether it is still there."""

import getpass
import os
import secrets
import socket
from datetime import datetime
from pathlib import Path
from typing import Self

from pydantic import AwareDatetime, BaseModel, ConfigDict

_PROC = Path("/proc")
_ENDED = "ZXx"
"""States in `/proc` of a process that has ended and waits for its parent to notice."""
_at_work: set[str] = set()
"""Tokens of this process's leases that it holds. What it could not take down names it for as long as it lives."""


class Owner(BaseModel):
    """Who holds a lease.

    Raises:
        ValidationError: For text that is no owner's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: str
    """Drawn anew for every lease."""
    user: str
    host: str
    """For people: hosts may share a name."""
    place: str
    """Where the process id means something: the boot of a machine and the name space of its process ids."""
    pid: int
    born: str | None
    """When the process began, in ticks since the boot; None where nothing tells. Process ids are used again."""
    started: AwareDatetime
    """When it took the lease."""

    @classmethod
    def this_process(cls) -> Self:
        """A new lease's owner."""
        pid, token = os.getpid(), secrets.token_hex(8)
        _at_work.add(token)
        return cls(
            token=token,
            user=_user(),
            host=socket.gethostname(),
            place=_place(),
            pid=pid,
            born=_born(pid),
            started=datetime.now().astimezone().replace(microsecond=0),
        )

    def end(self) -> None:
        """Let the lease go, though the process lives on, as in a notebook."""
        _at_work.discard(self.token)

    def has_ended(self) -> bool | None:
        """Whether it is over; None where that cannot be seen from here."""
        if self.place != _place():
            return None
        try:
            os.kill(self.pid, 0)  # signal 0 asks and does nothing
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # another user's: there
        if self.born is not None:
            try:
                if _born(self.pid) != self.born:
                    return True
            except OSError:
                return None
        return self.pid == os.getpid() and self.token not in _at_work

    def __str__(self) -> str:
        since = self.started.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        return f"{self.user}@{self.host}, process {self.pid}, since {since}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        return f"user {os.getuid()}"


def _place() -> str:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _born(pid: int) -> str | None:
    """When a process began; None where it has ended or nothing tells.

    Raises:
        OSError: If it is hidden.
    """
    if not (_PROC / "self/stat").exists():
        return None
    # The name in brackets may hold anything. Behind it: the state (field 3), …, the start (field 22).
    fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    return None if fields[0] in _ENDED else fields[19]
