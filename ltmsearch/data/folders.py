"""Image folders: the class of an image is the first folder below its split, as in torchvision's `ImageFolder`."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from timm.utils.misc import natural_key

from ltmsearch.data.images import suffixes
from ltmsearch.data.subsets import quoted
from ltmsearch.errors import InputError

Identity = tuple[int, int]
"""Device and inode: the same for a folder and for every link to it."""


@dataclass(frozen=True, kw_only=True)
class ScannedFolder:
    """Files of one split; torchvision's scan differs in that it says nothing of what it leaves out."""

    files: list[tuple[str, int]]
    """Paths and labels, in timm's order."""
    class_names: tuple[str, ...]
    """Classes in the order of the labels: those with images in timm's order, or those of a class map."""
    empty: tuple[str, ...]
    """Class folders without images."""
    left_out: Counter[str]
    """Number of files that are not used, by reason."""


def scan(root: Path, class_names: Sequence[str] | None = None) -> ScannedFolder:
    """Find the images of a split, at any depth of its class folders.

    Hidden files and folders are ignored, links are followed. With `class_names` from a class map, images in folders
    of other classes are left out, as in timm.

    Raises:
        InputError: If a folder cannot be read.
    """
    above = frozenset(map(_identity, (root, *root.resolve().parents)))
    by_class: dict[str, list[str]] = {}
    left_out: Counter[str] = Counter()
    outside, unmapped = [], []
    for entry in entries(root):
        if _is_folder(entry) and class_names is not None and entry.name not in class_names:
            if number := sum(1 for _ in _images(entry.path, above, Counter())):
                unmapped.append((entry.name, number))
        elif _is_folder(entry):
            by_class[entry.name] = list(_images(entry.path, above, left_out))
        elif _is_image(entry, left_out):
            outside.append(f"{root.name}/{entry.name}")
    if outside:
        left_out[f"outside of class folders, such as {quoted([min(outside)])}"] = len(outside)
    if unmapped:
        names = quoted([name for name, _ in sorted(unmapped)])
        left_out[f"in folders that the class map lacks, {names}"] = sum(number for _, number in unmapped)
    # A name breaks ties: timm's key does not distinguish cases.
    found = sorted((name for name, paths in by_class.items() if paths), key=_order)
    classes = found if class_names is None else class_names
    files = [(path, label) for label, name in enumerate(classes) for path in by_class.get(name, ())]
    return ScannedFolder(
        files=sorted(files, key=lambda file: _order(file[0])),
        class_names=tuple(classes),
        empty=tuple(sorted(set(by_class) - set(found))),
        left_out=left_out,
    )


def entries(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """Visible entries of a folder, in no order; raises InputError if it cannot be read."""
    try:
        with os.scandir(folder) as found:
            yield from (entry for entry in found if not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"the image folder {quoted([folder])} cannot be read: {error.strerror}") from error


def left_out_text(left_out: Counter[str]) -> str:
    """Such as `3 files left out: 2 .txt, 1 .mp4`, in one line; empty for none."""
    total = left_out.total()
    if not total:
        return ""
    shown = left_out.most_common(8)
    others = total - sum(number for _, number in shown)
    reasons = [f"{number} {reason}" for reason, number in shown] + [f"{others} others"] * (others > 0)
    return f"{total} file{'s' * (total > 1)} left out: {', '.join(reasons)}"


def _order(name: str) -> tuple[list[int | str], str]:
    return natural_key(name), name


def _identity(folder: str | Path) -> Identity:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _images(folder: str, above: frozenset[Identity], left_out: Counter[str]) -> Iterator[str]:
    """Paths of the images in a folder and below, without following links in circles."""
    waiting = [(folder, above)]
    while waiting:
        path, above = waiting.pop()
        here = _identity(path)
        if here in above:
            left_out["linked in a circle"] += 1
            continue
        for entry in entries(path):
            if _is_folder(entry):
                waiting.append((entry.path, above | {here}))
            elif _is_image(entry, left_out):
                yield entry.path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that cannot be followed
        return False


def _is_image(entry: os.DirEntry[str], left_out: Counter[str]) -> bool:
    suffix = os.path.splitext(entry.name)[1].lower()
    # A link that leads nowhere is listed as unreadable later; a pipe would be waited for.
    if _is_special(entry.path) if entry.is_symlink() else not entry.is_file():
        left_out["not regular"] += 1
    elif suffix in suffixes():
        return True
    else:
        usual = suffix[1:].isalnum() and len(suffix) <= 10
        left_out["without an ending" if not suffix else suffix if usual else "with an odd ending"] += 1
    return False


def _is_special(path: str) -> bool:
    return os.path.exists(path) and not os.path.isfile(path)
