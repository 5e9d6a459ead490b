"""YAML files at the border: read safely, checked by a pydantic model, refused in one line that says where."""

import re
from collections.abc import Iterable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from ltmsearch.errors import InputError, did_you_mean, shortened, unknown_name, without_passwords
from ltmsearch.io.files import MEGA, read_whole

Model = TypeVar("Model", bound=BaseModel)
Place = tuple[int | str, ...]
"""Names and positions that lead to a value, outermost first: ("layers", 0, "pattern")."""

# libyaml where PyYAML was built with it, which is ten times faster.
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
TEXT_TAG = "tag:yaml.org,2002:str"

MOST_BYTES = MEGA // 4
"""Of a YAML file; the largest that ltmsearch writes, a recipe, has about 5,000."""
MOST_VALUES = 10_000
"""Names and values in it, each alias counted as all that it stands for: a few lines may mean billions."""
MOST_LEVELS = 50
"""Lists and mappings inside one another."""
MOST_DIGITS = 100
"""Characters of a number."""
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_FOREIGN = ("binary", "omap", "pairs")
"""Types of YAML that no setting has, and that most programs do not know."""


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: If the file is missing, unreadable, not YAML, not a mapping of names, or gives a name twice.
    """
    return _read(path)[0]


def load(model: type[Model], path: Path) -> Model:
    """Build a model from a YAML file.

    Args:
        model: What the file must fit. Its `extra` decides whether unknown names are refused.
        path: The file.

    Raises:
        InputError: Like `read_yaml`, and for the first name or value that does not fit: its line, the rule, the value
            received, what would do.
    """
    content, tree = _read(path)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _mistake(error, model, str(path), tree) from None


def check(model: type[Model], content: dict[str, Any], where: str) -> Model:
    """Build a model from the content of a command line or a program.

    Args:
        model: What the content must fit. Its `extra` decides whether unknown names are refused.
        content: Names and values.
        where: Put before the message, e.g. the command.

    Raises:
        InputError: For the first name or value that does not fit: the rule, the value received, what would do.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _mistake(error, model, where) from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits. It refuses names given twice and tells the line of what it cannot build."""

    def __init__(self, text: str, path: Path) -> None:
        super().__init__(text)
        self.path = path
        self._values = self._levels = 0
        self._stands_for: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        before, alias = self._values, self.check_event(yaml.AliasEvent)
        self._levels += 1
        if self._levels > MOST_LEVELS:
            raise InputError(f"{self.path} must be YAML of at most {MOST_LEVELS} levels, but is nested too deeply")
        node = super().compose_node(parent, index)
        self._levels -= 1
        if node is None:
            return None
        if node.tag.rpartition(":")[2] in _FOREIGN:
            raise self._refused(node, "values must be text, numbers, true or false, null, lists or mappings")
        if alias and node not in self._stands_for:
            raise InputError(f"{self.path}:{_line(node)}: an alias must not stand inside what it stands for")
        self._values += self._stands_for[node] if alias else 1
        if self._values > MOST_VALUES:
            raise InputError(f"{self.path} must hold at most {MOST_VALUES:,} values, aliases counted, but holds more")
        if not alias:
            self._stands_for[node] = self._values - before
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if node.tag in _NUMBERS and len(node.value) > MOST_DIGITS:
            raise self._refused(node, f"numbers must have at most {MOST_DIGITS} characters")
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in node.value):
            raise self._refused(node, "text must be of whole characters, none of them null")
        return node

    def _refused(self, node: yaml.Node, rule: str) -> InputError:
        held = _shown(node.value) if isinstance(node, yaml.ScalarNode) else node.tag.rpartition(":")[2]
        return InputError(f"{self.path}:{_line(node)}: {rule}, but got {held}")

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (first := lines.get((key.tag, key.value))) is not None:
                raise InputError(
                    f"{self.path}:{_line(key)}: {_shown(key.value)} must be given once, but stands in line {first} too"
                )
            lines[key.tag, key.value] = _line(key)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # PyYAML's own, e.g. for 2026-02-30 or `!!bool x`
            held = _shown(node.value) if isinstance(node, yaml.ScalarNode) else type(node).__name__
            problem = f"{held} is no {node.tag.rpartition(':')[2]}"
            raise ConstructorError(None, None, problem, node.start_mark) from error


def _read(path: Path) -> tuple[dict[str, Any], yaml.MappingNode]:
    """The mapping in a YAML file, and the nodes it was built from: they know their lines."""
    try:
        text = read_whole(path, most=MOST_BYTES).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(f"{path} must be UTF-8 text, but byte {error.start} is {byte:#04x}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    try:
        loader = _Loader(text, path)
        tree = loader.get_single_node()
        content = None if tree is None else loader.construct_document(tree)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(f"{path}:{line}: must be YAML: character {error.character:#04x} is not allowed") from None
    except yaml.MarkedYAMLError as error:
        raise InputError(f"{path}{_syntax(error)}") from None
    if not isinstance(tree, yaml.MappingNode) or not isinstance(content, dict):
        held = "is empty" if content is None else f"holds {_shown(content)}"
        raise InputError(f"{path} must hold a mapping of names to values, but {held}")
    for key, _ in tree.value:
        if key.tag != TEXT_TAG:
            kind = key.tag.rpartition(":")[2]
            raise InputError(f"{path}:{_line(key)}: names must be text, but {_shown(key.value)} is {kind} in YAML")
    return content, tree


def _syntax(error: yaml.MarkedYAMLError) -> str:
    """`:line: problem` of a PyYAML error, with what it was reading then and where that began."""
    at = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
    began = f" from line {error.context_mark.line + 1}" if error.context_mark else ""
    context = f"{error.context}{began}, " if error.context else ""
    return f"{at}: must be YAML: {context}{error.problem}"


def _mistake(error: ValidationError, model: type[BaseModel], where: str, tree: yaml.Node | None = None) -> InputError:
    """The first thing that pydantic refused, in one line. Unknown names come first: often the others follow from them.

    Args:
        error: What pydantic says.
        model: The model that it comes from.
        where: File or command.
        tree: The file's nodes.
    """
    errors = error.errors(include_url=False)
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    place, unknown = first["loc"], first["type"] == "extra_forbidden"
    key, value = _find(tree, place) if tree else (None, None)
    if node := key if unknown else value:
        where = f"{where}:{_line(node)}"
    if unknown:
        *outer, name = place
        at = f"{_dotted(outer)}: " if outer else ""
        known = _settings_at(model, tuple(outer))
        told = str(unknown_name("setting", str(name), known)) if known else f"unknown setting {_shown(name)}"
        return InputError(f"{where}: {at}{told}")
    if first["type"] == "missing":
        return InputError(f"{where}: {_dotted(place)} must be given")
    rule = first["msg"].removeprefix("Value error, ")
    if not place:  # about several settings at once
        return InputError(f"{where}: {rule}")
    near = did_you_mean(str(first["input"]), _choices(first)) if first["type"] == "literal_error" else ""
    secret = any("password" in str(part) for part in place)
    return InputError(f"{where}: {_dotted(place)}: {rule}, but got {'***' if secret else _shown(first['input'])}{near}")


def _choices(error: ErrorDetails) -> list[str]:
    """The values that would do, where pydantic says that a value is none of them."""
    return re.findall(r"'([^']*)'", error["ctx"]["expected"])


def _find(tree: yaml.Node, place: Place) -> tuple[yaml.Node | None, yaml.Node | None]:
    """Name and value of what stands at a place; of the innermost thing around it that is in the file, else None."""
    key: yaml.Node | None = None
    value: yaml.Node | None = None
    node = tree
    for part in place:
        found: list[tuple[yaml.Node, yaml.Node]] = []
        if isinstance(node, yaml.MappingNode):
            found = [(name, held) for name, held in node.value if name.value == str(part)]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            found = [(item, item) for item in node.value[part : part + 1]]
        if found:  # parts that pydantic adds, such as the branch of a union, are not in the file
            key, value = found[-1]  # PyYAML puts what `<<` merges before a mapping's own
            node = value
    return key, value


def _settings_at(kind: Any, place: Place) -> list[str]:
    """Names of the settings that a place may hold, as far as types tell.

    Args:
        kind: A model or another annotation.
        place: From there inwards.
    """
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if not place:
            return list(kind.model_fields)
        field = kind.model_fields.get(str(place[0]))
        return _settings_at(field.annotation, place[1:]) if field else []
    inside = place if get_origin(kind) in (Annotated, Union, UnionType) else place[1:]
    return next(filter(None, (_settings_at(each, inside) for each in get_args(kind))), [])


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _dotted(place: Iterable[int | str]) -> str:
    return ".".join(shortened(str(part)) for part in place)


def _shown(value: Any) -> str:
    return shortened(without_passwords(repr(value)))


def to_yaml(content: dict[str, Any], header: str) -> str:
    """YAML text in the given order, under a comment."""
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    return comment + yaml.dump(content, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=100)
