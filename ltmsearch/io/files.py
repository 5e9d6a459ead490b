"""Files: atomic writing, reading with limits, and checks of paths that a user names."""

import errno
import json
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ltmsearch.errors import InputError

_log = logging.getLogger(__name__)

MEGA = 1_000_000
MAX_JSON_BYTES = 64 * MEGA
"""Of a JSON file; a latency profile has some hundred kilobytes."""
MAX_NAME_BYTES = 150
"""Of a name that ltmsearch makes; file systems allow 255, and temporary names and endings are longer."""


def refuse_special(path: Path) -> None:
    """Raise InputError if a path leads to a device, a pipe or a socket, which may never end or never begin."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"
        raise InputError(f"{path} must be a file, but is a {kind}")


def read_whole(path: Path, *, most: int) -> bytes:
    """Content of a file of at most `most` bytes that a user names.

    Raises:
        InputError: If it is larger, or a device, a pipe or a socket.
        OSError: If it is missing or cannot be read.
    """
    refuse_special(path)
    with path.open("rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise InputError(f"{path} must have at most {most / MEGA:g} MB, but has {path.stat().st_size / MEGA:,.1f}")
    return content


def read_json(path: Path) -> Any:
    """Content of a JSON file of at most `MAX_JSON_BYTES`; raises as `read_whole` and `parse_json`."""
    return parse_json(read_whole(path, most=MAX_JSON_BYTES).decode("utf-8"))


def parse_json(text: str) -> Any:
    """Content of a JSON text, in which NaN and infinities are allowed, as Python writes them.

    Raises:
        ValueError: If it is not JSON, nested too deeply, has an integer of more than 64 bits, or half a character.
    """
    try:
        content = json.loads(text, parse_int=_int64)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if re.search(r"\\u[dD][89a-fA-F]", text):  # otherwise valid UTF-8 has no surrogates
        json.dumps(content, ensure_ascii=False).encode()
    return content


def _int64(digits: str) -> int:
    number = int(digits)
    if abs(number) >= 2**63:
        raise ValueError(f"numbers must fit into 64 bits, but {digits[:20]}… does not")
    return number


def refuse_links_outward(folder: Path) -> None:
    """Raise InputError if a link below a folder leads out of it: writing through it would change files elsewhere."""
    root = folder.resolve()
    for parent, folders, files in os.walk(root):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                raise InputError(
                    f"{folder} must contain its own files, but {path.relative_to(root)} is a link to "
                    f"{os.path.realpath(path)}: replace the link by the file, or remove it"
                )


def refuse_unwritable(folder: Path, what: str) -> None:
    """Raise InputError unless files can be created in a folder, or in that in which it would be created.

    Before hours of work, not after. A file is created and removed: rights do not tell whether a file system accepts
    files, and to root they say nothing.
    """
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise OSError(errno.ENOTDIR, "it is a file" if there == folder else f"Not a directory: {there}")
        if any(len(os.fsencode(part)) > os.pathconf(there, "PC_NAME_MAX") for part in folder.parts):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        probe = _draft(there / "probe")
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        probe.unlink()
    except OSError as error:
        # As in /proc, where folders exist and nothing can be created.
        reason = "its file system accepts no new files" if error.errno == errno.ENOENT else error.strerror
        raise InputError(f"{what} {folder} cannot be written: {reason}") from error


def safe_name(text: str) -> str:
    """Text as a name of a file or folder: letters, digits and `._-`, not hidden, at most `MAX_NAME_BYTES` in UTF-8."""
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in text).lstrip(".")
    return name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")


def write_atomic(
    path: str | Path, content: str | bytes | Callable[[Path], object], *, before: Path | None = None
) -> Path:
    """Write a file under a temporary name in the same folder, flush it to disk and rename it.

    A reader, at any time or after a crash, finds the previous file or the new one. If writing fails, the previous file
    stays and the temporary one is removed. If `path` is a link, its target is replaced.

    Args:
        content: Text (stored as UTF-8, line ends as given), bytes, or a function that writes the file at the
            temporary path it receives, which has the ending of `path`.
        before: Path in the same folder at which the previous file is kept, if there is one.

    Raises:
        OSError: The folder is missing, not writable, or the disk is full.
    """
    target, start = Path(os.path.realpath(path)), time.perf_counter()
    # Not `tempfile`: its files are readable by the owner only, also after renaming.
    temporary = _draft(target)
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        # Without this a power loss after the rename can leave an empty file under the final name.
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        if before is not None and target.exists():
            _keep(target, before)
        os.replace(temporary, target)
        _flush_names(target.parent)
        _log.debug("wrote %s: %d bytes in %.1f ms", path, target.stat().st_size, 1e3 * (time.perf_counter() - start))
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error  # a failing write does not name its file
        raise
    return Path(path)


def remove_drafts(folder: Path) -> None:
    """Remove half-written files of killed processes from a folder, if it exists."""
    for path in folder.glob(".*"):
        made_by = _DRAFT.fullmatch(path.name)
        if made_by is not None and not _lives(int(made_by[1])):
            path.unlink(missing_ok=True)
            _log.info("removed %s, the half-written file of a process that has ended", path)


_DRAFT = re.compile(r"\..+-(\d+)-[0-9a-f]{8}(?:\.\w+)?")
"""Names that `_draft` gives."""


def _draft(path: Path) -> Path:
    """A temporary name next to a file, with the process's id for `remove_drafts`."""
    return path.with_name(f".{path.stem}-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        return True
    return True


def _keep(target: Path, before: Path) -> None:
    """Give a file a second name in one step; only without hard links is the first name missing for a moment."""
    link = _draft(before)
    try:
        os.link(target, link)
    except OSError:
        os.replace(target, before)
        return
    os.replace(link, before)


def _flush_names(folder: Path) -> None:
    """Flush a folder to disk if the system can, so that a power loss does not undo a rename."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
