"""A PostgreSQL server for tests: the fixture `postgres` (in `conftest.py`), on loopback, with a password.

It needs PostgreSQL's programs, as Debian's package `postgresql` installs them; without them tests are skipped.
"""

import os
import pwd
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.processes import DEVNULL, Process, completed, started


class Postgres:
    """A server that can be killed and started again.

    Args:
        folder: An existing folder for its data.
        programs: Folder of PostgreSQL's programs.
        password: Password of its user.
        options: Arguments of `started`, such as another user.
    """

    def __init__(self, folder: Path, programs: Path, password: str, options: dict[str, Any]) -> None:
        self.password = password
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._command = [str(programs / "postgres"), "-D", str(folder / "data"), "-p", str(self.port)]
        self._command += ["-h", "127.0.0.1", "-k", str(folder), "-c", "fsync=off"]
        self._options = options
        self._process: Process | None = None
        self._running = ExitStack()

    def url(self, *, password: bool = False) -> str:
        """The URL of its database, as a user gives it."""
        part = f":{self.password}" if password else ""
        return f"postgresql://searcher{part}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it and wait until it answers."""
        deadline = time.monotonic() + 60
        while True:
            # Children of a killed server may use its memory for a moment, and a new server ends at once then.
            if self._process is None or self._process.poll() is not None:
                self._process = self._running.enter_context(started(self._command, stderr=DEVNULL, **self._options))
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def kill(self) -> None:
        """Kill it."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop it, without waiting for clients as SIGTERM does."""
        self._end(signal.SIGINT)

    def _end(self, how: signal.Signals) -> None:
        with self._running:
            if self._process is not None:
                self._process.send_signal(how)
                self._process.wait(timeout=60)
                self._process = None


def programs() -> Path | None:
    """The folder of the newest `initdb` and `postgres`."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").is_file()), None)


def other_user() -> pwd.struct_passwd | None:
    """The user that runs the server: PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return None
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A server for one module, removed with its data afterwards; skips if PostgreSQL is not installed."""
    folder_of_programs = programs()
    if folder_of_programs is None:
        pytest.skip(
            "needs PostgreSQL's initdb, on the search path or below /usr/lib/postgresql (apt install postgresql)"
        )
    user, password = other_user(), secrets.token_hex(8)
    folder = Path(tempfile.mkdtemp(prefix="ltmsearch-postgres-"))  # only root may read pytest's folders
    try:
        (folder / "password").write_text(password + "\n")
        for path in (folder, folder / "password"):
            if user is not None:
                os.chown(path, user.pw_uid, user.pw_gid)
        init = [str(folder_of_programs / "initdb"), "--pgdata", str(folder / "data"), "--username", "searcher"]
        init += ["--auth", "scram-sha-256", "--pwfile", str(folder / "password"), "--encoding", "UTF8", "--no-sync"]
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
        quiet: dict[str, Any] = {"env": environment, "cwd": folder, "stdout": DEVNULL, "user": user}
        completed(init, **quiet)
        server = Postgres(folder, folder_of_programs, password, quiet)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
