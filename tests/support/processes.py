"""Processes of this machine, read from /proc."""

from pathlib import Path


def children(pid: int) -> set[int]:
    """Process ids of all descendants."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found |= {int(status.parent.name), *children(int(status.parent.name))}
    return found


def title(pid: int) -> str:
    """Command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
