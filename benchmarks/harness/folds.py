"""Folds of an image folder: its images cut into as many test sets, so that all of them are reported once."""

import os
from pathlib import Path

import numpy as np

SPLITS = ("train", "validation", "val", "test")
"""Folders of images, as far as there are any."""
VALIDATION = 8
"""One of so many images outside the test set chooses; the others train."""


def fold(data_dir: Path, folds: int, number: int, out: Path) -> Path:
    """A folder of links to the same images in other splits: those of a fold to test, by class; made once.

    Args:
        data_dir: A folder with such splits, each with a folder per class.
        folds: Number of folds.
        number: Which one is tested, from 0.
        out: Where the folder is made.
    """
    if out.exists():
        return out
    begun, rng = out.with_name(f".{out.name}"), np.random.default_rng(0)
    classes = {path.name for split in SPLITS for path in (data_dir / split).glob("*/")}
    if not classes:
        raise SystemExit(f"{data_dir} must have folders of classes in {', '.join(SPLITS)}, but has none")
    for name in sorted(classes):
        files = sorted(path for split in SPLITS for path in (data_dir / split / name).glob("*"))
        mixed = [files[place] for place in rng.permutation(len(files))]
        tested = mixed[number::folds]
        others = [path for path in mixed if path not in set(tested)]
        chosen = {"test": tested, "validation": others[::VALIDATION]}
        chosen["train"] = [path for path in others if path not in set(chosen["validation"])]
        for split, members in chosen.items():
            (begun / split / name).mkdir(parents=True, exist_ok=True)
            for path in members:
                link = begun / split / name / f"{path.parent.parent.name}-{path.name}"
                if not link.exists():
                    os.symlink(path.resolve(), link)
    begun.rename(out)
    return out
