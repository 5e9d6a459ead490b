"""Presets shipped with ltmsearch: search spaces and ready-made studies.

In a checkout, `search_spaces/` and `studies/` are next to the package; in an installed wheel, inside it.
"""

from pathlib import Path
from typing import Literal

from ltmsearch.errors import check_choice, unknown_name

Kind = Literal["search_spaces", "studies"]

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folder(kind: Kind) -> Path:
    """Folder of the shipped files of a kind; raises FileNotFoundError if the installation is incomplete."""
    check_choice("the kind of shipped files", kind, Kind)
    for root in (_PACKAGE, _PACKAGE.parent):
        if (root / kind).is_dir():
            return root / kind
    raise FileNotFoundError(f"this installation of ltmsearch has no {kind}/")


def shipped_names(kind: Kind) -> list[str]:
    """Names of the shipped files of a kind, sorted."""
    return sorted(path.stem for path in shipped_folder(kind).glob("*.yaml"))


def find_file(kind: Kind, name: str) -> Path:
    """The user's file at a path if there is one, else the shipped file of this name, with or without folder and ending.

    Raises:
        InputError: If there is neither; it lists the shipped names.
    """
    path, shipped = Path(name), shipped_names(kind)
    if path.is_file():
        return path
    stem = path.name.removesuffix(".yaml")
    if path.parent.name in ("", kind) and path.suffix in ("", ".yaml") and stem in shipped:
        return shipped_folder(kind) / f"{stem}.yaml"
    raise unknown_name("file", name, shipped)
