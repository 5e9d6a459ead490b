"""A PostgreSQL server of a test's own: the fixture `postgres` (in `conftest.py`), on loopback, with a password.

The programs are those of the machine, such as Debian's package `postgresql` installs; without them tests are skipped.
"""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Postgres:
    """A server that runs."""

    port: int
    password: str

    def url(self, *, password: bool = False) -> str:
        """The address of its database, as a user gives it."""
        told = f":{self.password}" if password else ""
        return f"postgresql://searcher{told}@127.0.0.1:{self.port}/postgres"


def programs() -> Path | None:
    """The folder of `initdb` and `postgres`, the newest version's."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").is_file()), None)


def other_user() -> pwd.struct_passwd | None:
    """Who runs the server: PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return None
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A server of a module's own, gone with its data afterwards; skips where none is installed."""
    folder_of_programs = programs()
    if folder_of_programs is None:
        pytest.skip(
            "needs PostgreSQL's initdb, on the search path or below /usr/lib/postgresql (apt install postgresql)"
        )
    user, password = other_user(), secrets.token_hex(8)
    as_user = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    folder = Path(tempfile.mkdtemp(prefix="ltmsearch-postgres-"))  # not pytest's: only root may look into that
    try:
        (folder / "password").write_text(password + "\n")
        for path in (folder, folder / "password"):
            if user is not None:
                os.chown(path, user.pw_uid, user.pw_gid)
        data = folder / "data"
        init = [str(folder_of_programs / "initdb"), "--pgdata", str(data), "--username", "searcher", "--no-sync"]
        init += ["--auth", "scram-sha-256", "--pwfile", str(folder / "password"), "--encoding", "UTF8"]
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
        quiet = {"env": environment, "cwd": folder, "stdout": subprocess.DEVNULL, **as_user}
        subprocess.run(init, check=True, timeout=120, **quiet)  # type: ignore[call-overload]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        serve = [str(folder_of_programs / "postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1"]
        serve += ["-k", str(folder), "-c", "fsync=off"]
        with subprocess.Popen(serve, stderr=subprocess.DEVNULL, **quiet) as server:  # type: ignore[call-overload]
            try:
                _wait_for(port)
                yield Postgres(port=port, password=password)
            finally:
                server.send_signal(signal.SIGINT)  # SIGTERM would wait for clients to leave
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return
