"""The error tree.

LtmsearchError
├── InputError        the user's input is wrong: one line, exit code 2
├── TrialFailed       one trial comes to no score: it fails alone
│   ├── TrialDiverged     its loss is not finite
│   ├── TrialTooLong      it takes longer than a trial may
│   └── TrialOutOfMemory  the memory of its device is full, with half the images a step too
├── WorkersLost       no worker is left that could evaluate trials; the same command continues
├── TrainingDiverged  a full training's loss is not finite: it ends
├── StorageLost       the database of a study fails while it is searched; the same command continues
├── LeaseLost         another driver took a study over: this one ends and writes nothing more
└── ExportError       a network cannot be exported, or what was written does not hold it
"""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class LtmsearchError(Exception):
    """Root of everything ltmsearch raises on purpose. Its message is one line that any terminal can print."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(without_passwords(message)))


class InputError(LtmsearchError):
    """The user's input breaks a rule. The message is one line: the rule, the value received, what would do."""


class TrialFailed(LtmsearchError):
    """A trial comes to no score. It fails alone, and the shared weights stay as they were."""


class TrialDiverged(TrialFailed):
    """The loss of a trial became infinite or NaN."""


class TrialTooLong(TrialFailed):
    """A trial takes longer than a trial may."""


class TrialOutOfMemory(TrialFailed):
    """The memory of a trial's device is full, with half the images of a step too."""


class WorkersLost(LtmsearchError):
    """No worker is left that could evaluate trials. What was told is kept, and the same command continues."""


class TrainingDiverged(LtmsearchError):
    """The loss of a full training became infinite or NaN."""


class StorageLost(LtmsearchError):
    """The database of a study fails while it is searched. What was told is kept, and the same command continues."""


class LeaseLost(LtmsearchError):
    """Another driver took the study over, or may have."""


class ExportError(LtmsearchError):
    """A network cannot be exported, or what was written does not hold it. The file is not left."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of a device or of the machine is full.

    torch has a class for it on GPUs, which is known by its name here so that torch need not be imported; on a CPU it
    raises a `RuntimeError` as for everything else.
    """
    of_torch = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and of_torch)


def without_passwords(text: str) -> str:
    """A text in which no URL shows its password."""
    return re.sub(r"(://[^:/@\s]*):[^\s]*@", r"\1:***@", text)


def printable(text: str) -> str:
    """A text in one line: what would break it, colour it or turn it round is written as Python escapes it.

    Names of files, layers and classes come from files, and stand in messages as they are.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shortened(text: str, length: int = 60) -> str:
    """A text of at most that many characters, the last of them an ellipsis where something was cut off."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question at the end of a message that lists what is known: the nearest of it, empty where none is near."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else ""


def not_among(what: str, name: str, known: Sequence[str]) -> InputError:
    """An `InputError` for a name that is none of a few, with all of them and the nearest.

    Args:
        what: What the name is, at the beginning of the message.
        name: What was received.
        known: What would do.
    """
    return InputError(f"{what} must be {', '.join(known)}, but got {name!r}{did_you_mean(name, known)}")


MANY = 40
"""More known names than this are not listed where one is near."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """An `InputError` for a name that is not among `known`, with the nearest one as a suggestion.

    Args:
        kind: What the name should have been, e.g. "backbone".
        name: What was received.
        known: What would do.
    """
    names, name = sorted(known), shortened(name, 200)
    begun = sorted((other for other in names if other.startswith(name)), key=len)
    close = begun or get_close_matches(name, names, n=1, cutoff=0.5)
    parts = [f"did you mean {close[0]}?"] if close else []
    if len(names) <= MANY or not close:
        parts.append(f"known are {', '.join(names)}")
    return InputError(f"unknown {kind} {name!r}: {' '.join(parts)}")
