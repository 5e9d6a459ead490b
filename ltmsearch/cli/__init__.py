"""The command line: parse, one call into the library, print. Heavy imports stay inside the commands."""

import sys
from typing import NoReturn

from rich.console import Console

from ltmsearch.cli import deploy, describe, profile, search, train, validate, visualize  # noqa: F401 (they add their commands)
from ltmsearch.cli.app import app, say, speaks
from ltmsearch.errors import InputError, LtmsearchError

__all__ = ["app", "main"]


def main() -> NoReturn:
    """Entry point: 0 done; 2 the input is wrong, one line says what and what would do; 1 anything else."""
    errors = Console(stderr=True, quiet=not speaks())
    try:
        app(standalone_mode=True)
    except InputError as error:
        say(errors, f"error: {error}")
        sys.exit(2)
    except LtmsearchError as error:
        say(errors, f"failed: {error}")
        sys.exit(1)
    sys.exit(0)
