"""Command-line presentation of a configuration field."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CliOption:
    """Metadata that `Annotated` attaches to a field; the field's docstring is the help text of its option.

    In the docstring and in `default`, a field's name in backquotes is shown as that field's option.
    """

    panel: str | None = None
    """Panel of `--help`; None: the first one."""
    metavar: str | None = None
    """Placeholder of the value; None: derived from the field's type."""
    default: str | None = None
    """Description of the default, for fields that default to None."""
    suggestions: Sequence[str] | Callable[[], Sequence[str]] = ()
    """Common values, for help and shell completion; other values may be valid too. A function's are only completed."""
