"""JSON at the border: files and the texts inside other files, with limits that no file of ltmsearch comes near."""

import json
import re
from pathlib import Path
from typing import Any

from ltmsearch.io.files import MEGA, read_whole

MOST_BYTES = 64 * MEGA
"""Of a JSON file: a latency profile has some hundred kilobytes."""


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: If it is larger than `MOST_BYTES`, or no file but a device, a pipe or a socket.
        OSError: If it is missing or cannot be read.
        ValueError: If it is not JSON in UTF-8; see `parse_json`.
    """
    return parse_json(read_whole(path, most=MOST_BYTES).decode("utf-8"))


def parse_json(text: str) -> Any:
    """The content of a JSON text. NaN and infinities are read, as Python writes them.

    Raises:
        ValueError: If it is not JSON, nested too deeply, has a number that no float holds, or half a character.
    """
    try:
        content = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if re.search(r"\\u[dD][89a-fA-F]", text):  # else no surrogate can come from valid UTF-8
        json.dumps(content, ensure_ascii=False).encode()
    return content


def _whole(digits: str) -> int:
    number = int(digits)
    if abs(number) >= 2**63:
        raise ValueError(f"numbers must fit into 64 bits, but {digits[:20]}… does not")
    return number
