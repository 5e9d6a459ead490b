"""Layout of a data set as a user has it: names of its splits, and the order of its classes."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ltmsearch.errors import InputError, shortened
from ltmsearch.io.files import MEGA, read_whole

MAX_BYTES = 16 * MEGA
"""Of a class map; the 21,843 names of ImageNet-22k have 0.3 million."""


@dataclass(frozen=True, kw_only=True)
class DataLayout:
    """Names of splits and a class map; None: the usual names, and the order of the class folders.

    A split of an image folder is a folder, relative to that of the data; of another data set it is a name.

    Raises:
        InputError: For a name that no split can have.
    """

    train_split: str | None = None
    """Training images."""
    val_split: str | None = None
    """Validation images."""
    test_split: str | None = None
    """Test images, which `ltmsearch validate` scores, and which no training or choice sees."""
    class_map: Path | None = None
    """timm's class map: a text file with a class per line, in the order of the network's outputs."""

    def __post_init__(self) -> None:
        for name in ("train_split", "val_split", "test_split"):
            given = getattr(self, name)
            try:
                if given is not None:
                    check_split(given)
            except ValueError as error:
                raise InputError(f"--{name.replace('_', '-')} {error}, but got {given!r}") from None

    def class_names(self) -> tuple[str, ...] | None:
        """Classes of the class map; None without one.

        Raises:
            InputError: If the file cannot be read or is no class map.
        """
        return None if self.class_map is None else read_class_map(self.class_map)


def check_split(name: str) -> str:
    """A name of a split, as it is; raises ValueError for one that no folder in a data folder can have."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or not name.isprintable():
        raise ValueError("must be the name of a split, or a folder in the data folder such as images/train")
    return name


def read_class_map(path: Path) -> tuple[str, ...]:
    """The classes of one of timm's class maps, in the order of its lines; empty lines at the end do not count.

    Raises:
        InputError: If the file is missing, no text file, or has less than two classes or one twice.
    """
    rule = f"the class map {path} must be a text file (.txt) with a class per line"
    if path.suffix.lower() != ".txt":
        hint = "; a pickle is not read" if path.suffix.lower() == ".pkl" else ""
        raise InputError(f"{rule}, but it ends in {path.suffix or 'nothing'}{hint}")
    try:
        text = read_whole(path, most=MAX_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{rule}, but it cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{rule}, but byte {error.start} is not UTF-8") from None
    lines = [line.strip() for line in text.rstrip().splitlines()]
    seen: dict[str, int] = {}
    for number, name in enumerate(lines, start=1):
        if not name:
            raise InputError(f"{rule}, but line {number} is empty")
        if name in seen:
            shown = shortened(repr(name))
            raise InputError(f"{path}:{number}: a class must be in one line, but {shown} is also in line {seen[name]}")
        seen[name] = number
    if len(lines) < 2:
        raise InputError(f"{rule}, of at least two, but it has {len(lines)}")
    return tuple(lines)
