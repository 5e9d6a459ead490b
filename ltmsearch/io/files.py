"""Files that are either the old version or the whole new one, never half of it."""

import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path

from ltmsearch.errors import InputError

_log = logging.getLogger(__name__)

MEGA = 1_000_000


def refuse_special(path: Path) -> None:
    """Raise where a path leads to something whose content never ends or never begins: a device, a pipe, a socket.

    Raises:
        InputError: For these; whoever opens the file tells of one that is missing or a folder.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"
        raise InputError(f"{path} must be a file, but is a {kind}")


def read_whole(path: Path, *, most: int) -> bytes:
    """The content of a file that a user names.

    Args:
        path: The file.
        most: Bytes that it may have: far more than any that ltmsearch writes.

    Raises:
        InputError: If it is larger, or no file but a device, a pipe or a socket.
        OSError: If it is missing or cannot be read.
    """
    refuse_special(path)
    with path.open("rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise InputError(f"{path} must have at most {most / MEGA:g} MB, but has {path.stat().st_size / MEGA:,.1f}")
    return content


def refuse_links_outward(folder: Path) -> None:
    """Raise where a link below a folder leads out of it: what is written through it would change files elsewhere.

    Folders that are copied or unpacked from an archive may hold such links without anyone's knowing.

    Args:
        folder: It need not exist.

    Raises:
        InputError: Naming the link.
    """
    root = folder.resolve()
    for parent, folders, files in os.walk(root):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                raise InputError(
                    f"{folder} must hold its own files, but {path.relative_to(root)} is a link to "
                    f"{os.path.realpath(path)}: put the file itself there, or remove the link"
                )


def refuse_unwritable(folder: Path, what: str) -> None:
    """Raise unless a folder can be made or written into: before hours of work, not after.

    Args:
        folder: It need not exist.
        what: What it is, for the message.

    Raises:
        InputError: With the reason.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    reason = "Permission denied" if not os.access(there, os.W_OK | os.X_OK) else None
    if not there.is_dir():
        reason = "it is a file" if there == folder else f"Not a directory: {there}"
    if reason:
        raise InputError(f"{what} {folder} cannot be written: {reason}")


def write_atomic(
    path: str | Path, content: str | bytes | Callable[[Path], object], *, before: Path | None = None
) -> Path:
    """Writes a file under a temporary name in the same folder, flushes it to disk and renames it.

    Whoever opens `path` meanwhile, or after a crash, finds the previous file or the new one. If writing
    fails, the previous file stays and the temporary one is removed. A `path` that is a link keeps pointing to
    its target, and the target is what is replaced.

    Args:
        path: The file to create or replace. Its folder must exist.
        content: Text (stored as UTF-8, line ends as given), bytes, or a function that writes the file at the
            temporary path it receives, which ends like `path` for writers that look at the ending.
        before: Where the previous file is kept, if there is one, in the same folder. Only where a file system has no
            links is there a moment in which it is there alone.

    Returns:
        `path`, as a `Path`.

    Raises:
        OSError: The folder is missing, not writable, or the disk is full.
    """
    target, start = Path(os.path.realpath(path)), time.perf_counter()
    # Not `tempfile`: its files are readable by the owner only, and the renamed file would stay so.
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
            raise OSError(error.errno, error.strerror, str(path)) from error  # which file, writing itself does not say
        raise
    return Path(path)


def remove_drafts(folder: Path) -> None:
    """Remove what processes left half written in a folder that have ended since, killed before they could tidy up.

    Args:
        folder: It need not exist.
    """
    for path in folder.glob(".*"):
        made_by = _DRAFT.fullmatch(path.name)
        if made_by is not None and not _lives(int(made_by[1])):
            path.unlink(missing_ok=True)
            _log.info("removed %s, which a process left half written", path)


_DRAFT = re.compile(r"\..+-(\d+)-[0-9a-f]{8}(?:\.\w+)?")
"""Names that `_draft` gives."""


def _draft(path: Path) -> Path:
    """A name beside a file for what is to take its place; it tells the process, so that leftovers can be told."""
    return path.with_name(f".{path.stem}-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _keep(target: Path, before: Path) -> None:
    """Give a file a second name, which replaces another one."""
    link = _draft(before)
    try:
        os.link(target, link)
    except OSError:
        os.replace(target, before)
        return
    os.replace(link, before)


def _flush_names(folder: Path) -> None:
    """Have a folder's names on the disk, so that a power loss does not undo a rename; where the system offers it."""
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
