"""Finding the files that come with ltmsearch: search spaces and ready-made studies.

In a checkout `search_spaces/` and `studies/` stand beside the package; in an installed wheel they are inside it.
"""

from pathlib import Path
from typing import Literal

from ltmsearch.errors import unknown_name

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folder(kind: Literal["search_spaces", "studies"]) -> Path:
    """The folder of that kind.

    Raises:
        FileNotFoundError: If the installation is incomplete.
    """
    for root in (_PACKAGE, _PACKAGE.parent):
        if (root / kind).is_dir():
            return root / kind
    raise FileNotFoundError(f"this installation of ltmsearch has no {kind}/")


def find_file(kind: Literal["search_spaces", "studies"], name: str) -> Path:
    """A user's file where there is one of that path, else the shipped file of that name.

    Args:
        kind: Which shipped folder to look into.
        name: A path, or a shipped file's name with or without folder and ending.

    Raises:
        InputError: If there is neither, with the shipped names.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in sorted(shipped_folder(kind).glob("*.yaml"))}
    if path.parent.name in ("", kind) and path.suffix in ("", ".yaml") and path.name.removesuffix(".yaml") in shipped:
        return shipped[path.name.removesuffix(".yaml")]
    raise unknown_name("file", name, shipped)
