"""What may stand behind an option: shown in the help, offered by the shell's completion.

The library says which names it takes, and refuses others; here they stand once more, so that completing a command line
imports neither torch nor timm. A test holds both alike.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, Literal

import typer

from ltmsearch.config.backbone_names import BACKBONES
from ltmsearch.io.presets import shipped_folder

OPERATORS = ("ltm", "pool", "tome")
FORMS = ("soft", "hard", "matched")
SAMPLERS = ("auto", "tpe", "gp", "nsga2", "random")
PRECISIONS = ("auto", "fp32", "bf16")
RUNTIMES = ("torch", "compile", "onnxruntime")
DTYPES = ("fp32", "bf16", "fp16")
MEMORY_FORMATS = ("channels_last", "contiguous")
CLIP_MODES = ("norm", "value", "agc")
SCHEDS = ("cosine", "tanh", "step", "constant", "poly", "wsd", "rsqrt")
REMODES = ("pixel", "const", "rand")
MIXUP_MODES = ("batch", "pair", "elem")
AMP_DTYPES = ("bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
"""Numbered ones, such as cuda:1, do too."""
DATASETS = ("digits", "folder", "torch/cifar10", "torch/cifar100", "torch/fashion_mnist", "torch/mnist")
"""The most usual ones."""


def one_of(names: Sequence[str], meaning: str, *, default: str | None = None, panel: str | None = None) -> Any:
    """An option that takes one of a few names, which its help lists.

    Args:
        names: What it takes.
        meaning: What it is.
        default: What holds without it, where that is no value of the option's own.
        panel: Of the help.
    """
    help = f"{meaning}: {', '.join(names[:-1])} or {names[-1]}." + (f" (default: {default})" if default else "")
    return typer.Option(metavar="NAME", help=help, rich_help_panel=panel, autocompletion=_starting(lambda: names))


def such_as(names: Sequence[str], help: str, *, panel: str | None = None) -> Any:
    """An option that takes one of some names, or others."""
    return typer.Option(metavar="NAME", help=help, rich_help_panel=panel, autocompletion=_starting(lambda: names))


def backbone_option(help: str) -> Any:
    """An option that takes the name of a backbone."""
    return typer.Option(metavar="NAME", help=help, autocompletion=_starting(backbones))


def backbone_argument(help: str, metavar: str = "BACKBONE") -> Any:
    """An argument that takes the name of a backbone."""
    return typer.Argument(metavar=metavar, help=help, autocompletion=_starting(backbones))


def shipped_option(kind: Literal["search_spaces", "studies"], help: str, *, panel: str | None = None) -> Any:
    """An option that takes a file, or the name of one that ltmsearch brings along."""
    shipped = _starting(lambda: _shipped(kind))
    return typer.Option(metavar="FILE|NAME", help=help, rich_help_panel=panel, autocompletion=shipped)


def backbones() -> Iterable[str]:
    """The timm names of all backbones."""
    return chain.from_iterable(BACKBONES.values())


def _shipped(kind: Literal["search_spaces", "studies"]) -> list[str]:
    return sorted(path.stem for path in shipped_folder(kind).glob("*.yaml"))


def _starting(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """The names that begin as what was typed; where there is none, the shell offers files."""
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]
