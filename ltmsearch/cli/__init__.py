"""The command line: parse, one call into the library, print. Heavy imports stay inside the commands."""

from ltmsearch.cli import deploy, describe, profile, run, search, train, validate, visualize  # noqa: F401 (they add their commands)
from ltmsearch.cli.app import app
from ltmsearch.cli.ending import main

__all__ = ["app", "main"]
