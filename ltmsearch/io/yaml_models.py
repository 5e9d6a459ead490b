"""YAML files read into pydantic models: safely, and with errors in one line that names the file and the line."""

import re
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from ltmsearch.errors import InputError, did_you_mean, shortened, unknown_name, without_passwords
from ltmsearch.io.files import MEGA, read_whole

Model = TypeVar("Model", bound=BaseModel)
Place = tuple[int | str, ...]
"""Names and positions that lead to a value, outermost first: ("layers", 0, "pattern")."""

# libyaml, where PyYAML was built with it, is ten times faster.
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_TAGS = "tag:yaml.org,2002:"

MAX_BYTES = MEGA // 4
"""Of a YAML file; the largest that ltmsearch writes, a recipe, has about 5,000."""
MAX_VALUES = 10_000
"""Names and values, with those that aliases repeat: a few lines may expand to billions."""
MAX_LEVELS = 50
"""Nested lists and mappings."""
MAX_DIGITS = 100
"""Characters of a number."""


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: If the file is missing, unreadable, not YAML, not a mapping of names, or has a name twice.
    """
    return _read(path)[0]


def load(model: type[Model], path: Path) -> Model:
    """Build a model from a YAML file; the model's `extra` decides whether unknown names are refused.

    Raises:
        InputError: As for `read_yaml`, and for the first unknown name or invalid value: its line, the rule, the value
            received and a suggestion.
    """
    content, tree = _read(path)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _input_error(error, model, str(path), tree) from None


def check(model: type[Model], content: dict[str, Any], where: str) -> Model:
    """Build a model from values of a command line or a program, `where` in error messages; raises as `load`."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _input_error(error, model, where) from None


def to_yaml(content: dict[str, Any], header: str) -> str:
    """YAML text in the given order, below a comment."""
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    return comment + yaml.dump(content, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=100)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also reports the line of a value that its tag does not allow."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # e.g. 2026-02-30
            problem = f"{_shown_node(node)} is not a valid {_kind(node)}"
            raise ConstructorError(None, None, problem, node.start_mark) from error


def _read(path: Path) -> tuple[dict[str, Any], yaml.MappingNode]:
    """The mapping in a YAML file, and the nodes it was built from, which know their lines."""
    try:
        text = read_whole(path, most=MAX_BYTES).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(f"{path} must be UTF-8 text, but byte {error.start} is {byte:#04x}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    try:
        loader = _Loader(text)
        tree = loader.get_single_node()
        if tree is not None:
            _count_values(tree, path, {})
        content = None if tree is None else loader.construct_document(tree)
    except RecursionError:
        raise InputError(f"{path} must have at most {MAX_LEVELS} nested levels, but has more") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(f"{path}:{line}: must be YAML: character {error.character:#04x} is not allowed") from None
    except yaml.MarkedYAMLError as error:
        raise InputError(f"{path}{_syntax(error)}") from None
    if not isinstance(tree, yaml.MappingNode) or not isinstance(content, dict):
        got = "is empty" if content is None else f"contains {_shown(content)}"
        raise InputError(f"{path} must be a mapping of names to values, but {got}")
    for key, _ in tree.value:
        if _kind(key) != "str":
            raise InputError(
                f"{path}:{_line(key)}: names must be text, but {_shown(key.value)} is {_kind(key)} in YAML"
            )
    return content, tree


def _count_values(node: yaml.Node, path: Path, counts: dict[yaml.Node, int], level: int = 1) -> int:
    """Number of values in a node, whose aliases are the same node; refuses content that no file of ltmsearch needs.

    `counts` has the results for the nodes before this one, and 0 for those around it.
    """
    if node in counts:
        if not counts[node]:
            raise InputError(f"{path}:{_line(node)}: an alias must not be part of its own value")
        return counts[node]
    counts[node] = 0
    if level > MAX_LEVELS:
        raise RecursionError
    if rule := _broken_rule(node):
        raise InputError(f"{path}:{_line(node)}: {rule}, but got {_shown_node(node)}")
    inside: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _refuse_duplicates(node, path)
        inside = [each for pair in node.value for each in pair]
    elif isinstance(node, yaml.SequenceNode):
        inside = node.value
    counts[node] = 1 + sum(_count_values(each, path, counts, level + 1) for each in inside)
    if counts[node] > MAX_VALUES:
        raise InputError(f"{path} must have at most {MAX_VALUES:,} values, including those of aliases, but has more")
    return counts[node]


def _broken_rule(node: yaml.Node) -> str | None:
    if _kind(node) in ("binary", "omap", "pairs"):
        return "values must be text, numbers, true or false, null, lists or mappings"
    if isinstance(node, yaml.ScalarNode):
        if _kind(node) in ("int", "float") and len(node.value) > MAX_DIGITS:
            return f"numbers must have at most {MAX_DIGITS} characters"
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in node.value):
            return "text must consist of valid characters other than null"
    return None


def _refuse_duplicates(node: yaml.MappingNode, path: Path) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
        if first := lines.get((key.tag, key.value)):
            raise InputError(
                f"{path}:{_line(key)}: {_shown(key.value)} must be given once, but is also in line {first}"
            )
        lines[key.tag, key.value] = _line(key)


def _syntax(error: yaml.MarkedYAMLError) -> str:
    """`:line: problem` of a PyYAML error, with its context and where that begins."""
    at = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
    began = f" from line {error.context_mark.line + 1}" if error.context_mark else ""
    context = f"{error.context}{began}, " if error.context else ""
    return f"{at}: must be YAML: {context}{error.problem}"


def _input_error(
    error: ValidationError, model: type[BaseModel], where: str, tree: yaml.Node | None = None
) -> InputError:
    """Pydantic's first error in one line; unknown names come first, since other errors often follow from them."""
    errors = error.errors(include_url=False)
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    place, rule = first["loc"], first["msg"].removeprefix("Value error, ")
    dotted = ".".join(shortened(str(part)) for part in place)
    unknown = first["type"] == "extra_forbidden"
    if tree is not None and (node := _node_at(tree, place, of_name=unknown)):
        where = f"{where}:{_line(node)}"
    if unknown:
        *outer, name = place
        at = f"{dotted.rpartition('.')[0]}: " if outer else ""
        known = _names_at(model, tuple(outer))
        return InputError(
            f"{where}: {at}{unknown_name('setting', str(name), known) if known else f'unknown setting {_shown(name)}'}"
        )
    if first["type"] == "missing":
        return InputError(f"{where}: {dotted} must be given")
    if not place:  # a rule about several settings
        return InputError(f"{where}: {rule}")
    choices = re.findall(r"'([^']*)'", first["ctx"]["expected"]) if first["type"] == "literal_error" else []
    got = "***" if "password" in dotted else _shown(first["input"])
    return InputError(
        f"{where}: {with_subject(dotted, rule)}, but got {got}{did_you_mean(str(first['input']), choices)}"
    )


def first_line(error: ValidationError) -> str:
    """Pydantic's first error in one line: field, rule and value received."""
    first = error.errors(include_url=False)[0]
    rule = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return rule
    return f"{with_subject(str(first['loc'][0]), rule)}, but got {_shown(first['input'])}"


def with_subject(name: str, rule: str) -> str:
    """A rule of pydantic with the name of what breaks it: "seed must be a valid integer"."""
    rule = re.sub(r"^\w+ should", "must", rule).partition(", unable to parse")[0]
    return f"{name} {rule}" if rule.startswith("must") else f"{name}: {rule}"


def _node_at(tree: yaml.Node, place: Place, *, of_name: bool) -> yaml.Node | None:
    """Node of the innermost value at a place that the file contains, or of its name; None if it contains none."""
    found: tuple[yaml.Node, yaml.Node] | None = None
    node = tree
    for part in place:
        pairs: list[tuple[yaml.Node, yaml.Node]] = []
        if isinstance(node, yaml.MappingNode):
            pairs = [(name, value) for name, value in node.value if name.value == str(part)]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            pairs = [(item, item) for item in node.value[part : part + 1]]
        if pairs:  # parts that pydantic adds, such as the branch of a union, are not in the file
            found = pairs[-1]  # PyYAML puts what `<<` merges before a mapping's own values
            node = found[1]
    return found and found[0 if of_name else 1]


def _names_at(kind: Any, place: Place) -> list[str]:
    """Names of the settings at a place inside a type; empty if the type does not determine them."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if not place:
            return list(kind.model_fields)
        field = kind.model_fields.get(str(place[0]))
        return _names_at(field.annotation, place[1:]) if field else []
    inside = place if get_origin(kind) in (Annotated, Union, UnionType) else place[1:]
    return next(filter(None, (_names_at(each, inside) for each in get_args(kind))), [])


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _kind(node: yaml.Node) -> str:
    return str(node.tag).removeprefix(_TAGS)


def _shown_node(node: yaml.Node) -> str:
    return _shown(node.value) if isinstance(node, yaml.ScalarNode) else _kind(node)


def _shown(value: Any) -> str:
    return shortened(without_passwords(repr(value)))
