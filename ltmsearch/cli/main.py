"""How every command ends: its exit code, and one line for whatever went wrong."""

import logging
import sys
from typing import Any, NoReturn

import typer
from rich.console import Console

from ltmsearch.cli import describe, export, front, profile, run, train, validate, visualize  # noqa: F401 (each adds its commands)
from ltmsearch.cli.app import ORDER, app, say, speaks
from ltmsearch.cli.log import without_torchs_remark
from ltmsearch.errors import InputError, LtmsearchError, is_out_of_memory

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""What typer raises for arguments that it cannot parse; it has no public name."""
INTERRUPTED = 130
"""What typer answers after Ctrl-C."""
MEMORY = "failed: the memory of the device is full: a smaller --batch-size or --img-size would do"

_log = logging.getLogger(__name__)


def main() -> NoReturn:
    """Entry point: 0 done; 2 the input is wrong, one line says what and what would do; 1 anything else."""
    with without_torchs_remark():
        sys.exit(_run())


def _run() -> int:
    """Run the command that the arguments name; its exit code."""
    try:
        code = app(standalone_mode=False)
    except InputError as error:
        return _failed(2, f"error: {error}")
    except LtmsearchError as error:
        return _failed(1, f"failed: {error}")
    except UsageError as error:
        return _failed(2, _in_one_line(error))
    except OSError as error:  # a full disk, no rights: a traceback would tell nothing more
        return _failed(1, f"failed: {error}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _failed(1, MEMORY)
    except typer.Abort:
        code = INTERRUPTED
    if code == INTERRUPTED:
        return _failed(1, "stopped")
    return code if isinstance(code, int) else 0


def _failed(code: int, line: str) -> int:
    if line:
        say(Console(stderr=True, quiet=not speaks()), line)
    return code


def _in_one_line(error: Any) -> str:
    """What typer says of wrong arguments, the value received, and where all are told.

    Empty where typer has printed the help instead.
    """
    message = " ".join(error.format_message().split()).removesuffix(".")
    if not message:
        return ""
    param, near = getattr(error, "param", None), getattr(error, "possibilities", None)
    if near:
        message = f"unknown option {error.option_name}: did you mean {near[0]}?"
    elif message.startswith("Invalid value") and param is not None:
        name = param.opts[0] if param.param_type_name == "option" else param.metavar
        message = f"{name}: {error.message}{_received(param.opts)}"
    command = [word for word in sys.argv[1:2] if word in ORDER]
    return f"error: {message[:1].lower()}{message[1:]} (see {' '.join(('ltmsearch', *command, '--help'))})"


def _received(options: list[str]) -> str:
    """The value of an option that was refused, as it was typed."""
    for place, word in enumerate(sys.argv[1:], start=2):
        name, equals, value = word.partition("=")
        if name in options:
            values = [value] if equals else sys.argv[place : place + 1]
            return f", but got {values[0]!r}" if values else ""
    return ""
