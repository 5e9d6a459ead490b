"""Command-line options generated from configuration fields: their names, help, choices and defaults."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from inspect import Parameter, signature
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

from ltmsearch.config.cli_option import CliOption

OUTPUT = "Output"
"""Panel of the help that comes last."""
VALUES = (re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL), re.compile(r"[+-]?[\d.]+(e[+-]?\d+)?", re.IGNORECASE))
"""Forms of values of which several may follow an option: KEY=VALUE, and numbers."""
LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
"""Limits of numbers, by the name that pydantic gives them."""


def options_from(
    model: type[BaseModel],
    *,
    only: Collection[str] | None = None,
    leave_out: Collection[str] = (),
    defaults: bool = True,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command so that it takes every field of a model as an option, or those that are named.

    The command receives them in its `**` parameter: as text that the model has to parse, as a list of texts for
    mappings and sequences, as a bool for switches, and as None where an option is not given.
    """
    generated = [
        Parameter(
            name,
            Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                _value_type(field), field_option(model, name, panel=_presentation(field).panel, default=defaults)
            ],
        )
        for name, field in model.model_fields.items()
        if name not in leave_out and (only is None or name in only)
    ]

    def decorate(command: Any) -> Any:
        *own, _generated = signature(command).parameters.values()
        own = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in own]
        first = [parameter for parameter in own if _panel(parameter) != OUTPUT]
        last = [parameter for parameter in own if _panel(parameter) == OUTPUT]
        command.__signature__ = signature(command).replace(parameters=[*first, *generated, *last])
        return command

    return decorate


class ManyValues(TyperCommand):
    """A command whose options that can be repeated take several values at once, as in timm's scripts (`nargs="+"`).

    A value continues an option if it looks like the one before: KEY=VALUE, or a number.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each further value."""
        many = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        words: list[str] = []
        option, last = "", None  # `last` is the option's last value, "" before its first, None behind them
        for word in args:
            name, _, value = word.partition("=")
            if name in many:
                option, last = name, value
            elif last == "":
                last = word
            elif last is not None and any(kind.fullmatch(last) and kind.fullmatch(word) for kind in VALUES):
                words.append(option)
            else:
                last = None
            words.append(word)
        return super().parse_args(ctx, words)


def given_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, of those of `options_from`; the word none stands for no value."""
    words = {name: value for name, value in given.items() if value is not None}
    return {name: None if value in ("none", ["none"]) else value for name, value in words.items()}


def field_option(model: type[BaseModel], name: str, *, panel: str | None = None, default: bool = True) -> Any:
    """A `typer.Option` with the help, choices and completion of a field."""
    field = model.model_fields[name]
    shown = _presentation(field)
    facts = "; ".join(filter(None, (_values(field), _default(field) if default else "")))
    text = f"{field.description} ({facts})" if facts else f"{field.description}"
    return typer.Option(
        metavar=shown.metavar or _metavar(field),
        help=re.sub(r"`(\w+)`", lambda match: _spelled(match[1], model), " ".join(text.split())),
        rich_help_panel=panel,
        show_default=False,
        autocompletion=completing(_choices(field) or shown.suggestions),
    )


def choice_option(names: Any, meaning: str) -> Any:
    """A `typer.Option` that takes one of a few names."""
    help = f"{meaning} ({_listed(get_args(names))})"
    return typer.Option(metavar="NAME", help=help, show_default=False, autocompletion=completing(get_args(names)))


def completing(names: Sequence[str] | Callable[[], Sequence[str]]) -> Callable[[str], list[str]]:
    """Shell completion by names that start with what was typed; without any, the shell completes files."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in (names() if callable(names) else names) if name.startswith(incomplete)]

    return complete


def flag(*names_and_help: str, panel: str | None = None) -> Any:
    """A `typer.Option` without a value."""
    *names, help = names_and_help
    return typer.Option(*names, metavar="", help=help, rich_help_panel=panel)  # else the help says <bool>


def _panel(parameter: Parameter) -> str | None:
    (option,) = parameter.annotation.__metadata__
    return option.rich_help_panel if isinstance(option.rich_help_panel, str) else None


def _presentation(field: FieldInfo) -> CliOption:
    return next((each for each in field.metadata if isinstance(each, CliOption)), CliOption())


def _kind(field: FieldInfo) -> Any:
    """Type of a field's values other than None."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    return kinds[0] if NoneType in get_args(field.annotation) else field.annotation


def _choices(field: FieldInfo) -> tuple[str, ...]:
    kind = _kind(field)
    return get_args(kind) if get_origin(kind) is Literal else ()


def _value_type(field: FieldInfo) -> Any:
    kind = _kind(field)
    if get_origin(kind) is dict or get_args(kind)[1:] == (...,):
        return list[str] | None
    if get_origin(kind) is tuple:  # a range
        return tuple[str, str] | None
    return (bool if kind is bool else str) | None


def _metavar(field: FieldInfo) -> str:
    names = {int: "INT", float: "FLOAT", bool: "", str: "TEXT"}
    return names.get(_kind(field), "NAME")


def _values(field: FieldInfo) -> str:
    """Choices or range of a field."""
    if names := _choices(field):
        return _listed(names)
    suggestions = _presentation(field).suggestions
    if suggestions and not callable(suggestions):
        return f"e.g. {', '.join(suggestions)}"
    limits = {sign: getattr(limit, sign) for limit in field.metadata for sign in LIMITS if hasattr(limit, sign)}
    if "ge" in limits and "le" in limits:
        return f"{limits['ge']} to {limits['le']}"
    return ", ".join(f"{LIMITS[sign]} {limit}" for sign, limit in limits.items())


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _default(field: FieldInfo) -> str:
    text = _presentation(field).default
    if text is None and field.default is not None and not isinstance(field.default, bool) and not field.is_required():
        text = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
    return f"default: {text}" if text else ""


def _spelled(name: str, model: type[BaseModel]) -> str:
    return f"--{name.replace('_', '-')}" if name in model.model_fields else name
