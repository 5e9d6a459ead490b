"""Entry point of the command line: exit codes, and one-line error messages. Imports little: see `commands`."""

import errno
import logging
import sys
from typing import Any, NoReturn

import typer

from ltmsearch.cli.commands import ENTRIES, app
from ltmsearch.cli.signals import TERMINATED, Terminated, ending_signals
from ltmsearch.errors import InputError, LtmsearchError, is_out_of_memory

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""Typer's error for arguments that it cannot parse; it has no public name."""
INTERRUPTED = 130
"""Typer's exit code after Ctrl-C."""
OUT_OF_MEMORY = "failed: the device is out of memory: use a smaller --batch-size, --scoring-batch-size or --img-size"


def main() -> NoReturn:
    """Exit with 0 after success, 2 for wrong input (one line: rule, value, suggestion), 143 after SIGTERM, else 1."""
    # On a machine with CUDA's compiler but no GPU, torch warns in every process that no CUDA runtime is found.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    with ending_signals():
        code = _run()
    sys.exit(code)


def _run() -> int:
    try:
        code = app(standalone_mode=False)
    except InputError as error:
        return _failed(2, f"error: {error}")
    except LtmsearchError as error:
        return _failed(1, f"failed: {error}")
    except UsageError as error:
        return _failed(2, _in_one_line(error))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # of what a user names: ltmsearch's own names are short
            return _failed(2, f"error: paths must be short enough for their file system, but got {error.filename!r}")
        # A full disk or missing rights, where a traceback would add nothing
        return _failed(1, f"failed: {error}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _failed(1, OUT_OF_MEMORY)
    except typer.Abort:
        code = INTERRUPTED
    except Terminated:
        return _failed(TERMINATED, "terminated")
    if code == INTERRUPTED:
        return _failed(1, "stopped")
    return code if isinstance(code, int) else 0


def _failed(code: int, line: str) -> int:
    if line:
        from ltmsearch.cli.terminal import notes
        from ltmsearch.io.console_tables import print_line

        print_line(notes(), line)
    return code


def _in_one_line(error: Any) -> str:
    """Typer's message with the value received; empty where typer has printed the help instead."""
    message = " ".join(error.format_message().split()).removesuffix(".")
    if not message:
        return ""
    if message.startswith("Invalid value"):
        from ltmsearch.io.yaml_models import with_subject

        option = error.param.opts[0]
        message = f"{with_subject(option, error.message.removesuffix('.'))}, but got {_received(option)!r}"
    command = [word for word in sys.argv[1:2] if word in ENTRIES]
    return f"error: {message[:1].lower()}{message[1:]} (see {' '.join(('ltmsearch', *command, '--help'))})"


def _received(option: str) -> str:
    for place, word in enumerate(sys.argv, start=1):
        name, equals, value = word.partition("=")
        if name == option:
            return value if equals else sys.argv[place]
    return ""
