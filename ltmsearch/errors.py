"""Errors that ltmsearch raises on purpose, and the wording of their messages.

LtmsearchError
├── InputError        wrong input; exit code 2
├── TrialFailed       one trial has no score; the search continues
│   ├── TrialDiverged
│   ├── TrialTooLong
│   └── TrialOutOfMemory
├── WorkersLost       repeating the command continues the study
├── TrainingDiverged
├── StorageLost       repeating the command continues the study
├── LeaseLost
└── ExportError
"""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, get_args


class LtmsearchError(Exception):
    """Base of all errors that ltmsearch raises on purpose. The message is one printable line without passwords."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(without_passwords(message)))


class InputError(LtmsearchError):
    """Input that breaks a rule. The message has the rule, the value received and a suggestion."""


class TrialFailed(LtmsearchError):
    """A trial that ends without a score and leaves the shared weights unchanged."""


class TrialDiverged(TrialFailed):
    """The loss of a trial became infinite or NaN."""


class TrialTooLong(TrialFailed):
    """A trial exceeded its time limit."""


class TrialOutOfMemory(TrialFailed):
    """A trial ran out of device memory, with half the batch size too."""


class WorkersLost(LtmsearchError):
    """No worker is left to evaluate trials. Results so far are saved."""


class TrainingDiverged(LtmsearchError):
    """The loss of a full training became infinite or NaN."""


class StorageLost(LtmsearchError):
    """The database of a study failed during the search. Results so far are saved."""


class LeaseLost(LtmsearchError):
    """Another process took the study over, or may have."""


class ExportError(LtmsearchError):
    """A network cannot be exported, or the exported file differs from it and was removed."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception reports that a device or the machine is out of memory."""
    # By name, so that torch need not be imported; on a CPU torch raises a plain RuntimeError.
    of_torch = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and of_torch)


def without_passwords(text: str) -> str:
    """The text with the passwords of its URLs replaced by ***."""
    return re.sub(r"(://[^:/@\s]*):[^\s]*@", r"\1:***@", text)


def printable(text: str) -> str:
    """The text with characters that break, colour or reverse a line escaped as Python does it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shortened(text: str, length: int = 60) -> str:
    """The text cut to a length, with an ellipsis at the end if it was longer."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """End of a message that suggests the nearest known name; empty if none is near."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else ""


def not_among(what: str, name: object, known: Sequence[str]) -> InputError:
    """An `InputError` for a name that is not one of a few; it lists them and suggests the nearest.

    Args:
        what: Subject of the message.
        name: The value received, which need not be text.
        known: Valid names.
    """
    nearest = did_you_mean(name, known) if isinstance(name, str) else ""
    return InputError(f"{what} must be {', '.join(known)}, but got {shortened(repr(name), 200)}{nearest}")


def check_choice(what: str, name: object, choices: Any) -> None:
    """Raise `not_among` unless a value is one of the names of a `Literal`.

    Type checkers refuse others too, but many programs and notebooks are never type-checked.
    """
    known = get_args(choices)
    if not isinstance(name, str) or name not in known:
        raise not_among(what, name, known)


MAX_LISTED = 40
"""Longer lists of known names are left out if one is near, and otherwise shortened."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> InputError:
    """An `InputError` for a name that is not known; it suggests the nearest.

    Args:
        kind: Kind of name, e.g. "backbone".
        name: The value received, which need not be text.
        known: Valid names.
    """
    names, name = sorted(known), shortened(name if isinstance(name, str) else repr(name), 200)
    begun = sorted((other for other in names if other.startswith(name)), key=len)
    close = begun or get_close_matches(name, names, n=1, cutoff=0.5)
    parts = [f"did you mean {close[0]}?"] if close else []
    if len(names) <= MAX_LISTED or not close:
        shown = names[:: max(1, -(-len(names) // MAX_LISTED))]  # of many, some from every part of the alphabet
        number = "" if len(shown) == len(names) else f" {len(names)} names, among them"
        parts.append(f"known are{number} {', '.join(shown)}")
    return InputError(f"unknown {kind} {name!r}: {' '.join(parts)}")
