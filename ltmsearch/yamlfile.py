"""YAML files at the border: read safely, checked by a pydantic model, refused in one line."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ltmsearch.errors import InputError, unknown_name

Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: If the file is missing, unreadable, not YAML, or not a mapping of names.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} must be YAML, but {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{path} must hold a mapping of names to values, but holds {type(content).__name__}")
    return content


def check(model: type[Model], content: dict[str, Any], where: str) -> Model:
    """Build a model from the content of a file or a command line.

    Args:
        model: What the content must fit.
        content: Names and values.
        where: Put before the message, e.g. the file.

    Raises:
        InputError: For the first name or value that does not fit: the rule, the value received, what would do.
    """
    for name in content:
        if name not in model.model_fields:
            error = unknown_name("setting", name, model.model_fields)
            raise InputError(f"{where}: {error}")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            raise InputError(f"{where}: {name} must be given") from None
        raise InputError(f"{where}: {name}: {message}, but got {first['input']!r}") from None


def to_yaml(content: dict[str, Any], header: str) -> str:
    """YAML text in the given order, under a comment."""
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    return comment + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
