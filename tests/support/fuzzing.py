"""Damaged copies of valid files, drawn by Hypothesis, and the outcome of reading one."""

import json
import re
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from hypothesis import strategies as st

from ltmsearch.errors import InputError

Kind = Literal["yaml", "json", "csv", "safetensors"]
SECONDS = 10.0
"""Limit of one case on a busy machine; usually it takes milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader, and valid files for it."""

    name: str
    kind: Kind
    file: str
    """Name of the damaged file."""
    originals: tuple[bytes, ...]
    load: Callable[[Path], object]


class _TooSlow(BaseException):
    """Not an `Exception`, so that no reader catches it."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Interrupt the body after that time."""

    def ring(*_: object) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(load: Callable[[Path], object], path: Path) -> str:
    """`loaded`, `refused`, or a description of the failure."""
    try:
        with at_most(SECONDS):
            load(path)
    except InputError as error:
        line = str(error)
        if not line.isprintable() or not line.strip() or len(line) > 3000:
            return f"not one printable line: {line[:200]!r}"
        return "refused" if path.name in line else f"does not name the file: {line[:200]}"
    except _TooSlow:
        return f"took more than {SECONDS:g} s"
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {str(error)[:200]!r}"
    return "loaded"


TEXTS = (
    "", "null", "yes", "0x1F", "1:30:45", "1e999", ".inf", ".nan", "2026-02-30", "0001-01-01 00:00:00+23:00",
    "../../../etc/passwd", "a\0b", "\x1b[31mred", "\u202egnp", "\ud800", "a\u2028b", "<script>alert(1)</script>",
    "{{7*7}}", "%s%n", "9" * 5000, "x" * 5000, "[", "*", "ltm_", "ltm_mobilevit_xxs", "\ufeff",
)  # fmt: skip
NUMBERS = (-1, 1e-320, 1e308, float("inf"), float("nan"), 2**31, 2**64, 10**400, -(10**4000))
RAW_YAML = (
    "!!python/object/apply:os.system [true]", "!!python/tuple [1]", "!!binary '*'", "!!set {a, b}", "!!omap [a: 1]",
    "!!pairs [a: 1, a: 2]", "!!timestamp x", "!!int ''", "!!float .", "!!float 1:1:1" + ":1" * 300,
    "!!int 1" + ":1" * 3000, "!!bool maybe", "!!null x", "!local x", "! x", "&a [*a]", "&a {a: *a}", "*nowhere",
    "{<<: [1]}", "<<", "=", "|\n  a\n  b", "? a\n: b", "{a: 1", "%YAML 9.9", '"\\ud800"', '"\\0"', "@x", "\t", "---",
    "...", "#", "1_000", "0o17", "[" * 60 + "]" * 60, "[" * 2000, "{a: " * 300, "9" * 5000, "0x" + "f" * 5000,
    "!!map [a]", "!!seq {a: 1}", "!!str [a]", "!!int [1]", "!!float {a: 1}",
)  # fmt: skip
RAW_JSON = (
    "NaN", "-Infinity", "1e999", "-", "9" * 5000, '"\\ud800"', '"\\u0000"', "null", "[" * 100 + "]" * 100,
    "[" * 3000 + "]" * 3000, '{"a":' * 3000, "'", "1.5", "-1", '{"blocks.0": "hard"}', '{"": 1e-320}',
)  # fmt: skip

texts = st.sampled_from(TEXTS) | st.text(max_size=20)
anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(NUMBERS) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
"""Values that few rules expect."""


@st.composite
def _damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Flip, cut, insert or repeat bytes or lines, encode otherwise, or replace everything."""
    start = draw(st.integers(0, len(content)))
    end = min(start + draw(st.integers(1, 40)), len(content))
    before, part, after = content[:start], content[start:end], content[end:]
    text, lines = content.decode("utf-8", "replace"), content.splitlines(keepends=True)
    line = draw(st.integers(0, len(lines)))
    flipped = bytes([part[0] ^ 1 << draw(st.integers(0, 7))]) + part[1:] if part else b"\0"
    inserted = draw(st.binary(max_size=16) | texts.map(lambda text: text[:300].encode("utf-8", "surrogatepass")))
    encoding = draw(st.sampled_from(("utf-16", "utf-32-le", "utf-8-sig", "utf-7", "cp037")))
    line_end = draw(st.sampled_from((b"\r\n", b"\r", b"\x85", b"\0\n", b"")))
    choices = (
        before + flipped + after,
        before,
        before + after,
        before + inserted + part + after,
        before + part * draw(st.sampled_from((2, 3, 200))) + after,
        b"".join(lines[:line] + lines[line + 1 :]),
        b"".join(lines[: line + 1] + lines[line:]),
        text.encode(encoding, "replace"),
        content.replace(b"\n", line_end),
        draw(st.binary(max_size=200)),
    )
    return draw(st.sampled_from(choices))


@st.composite
def _changed(draw: st.DrawFn, tree: Any) -> Any:
    """Replace, rename, remove or add one value of a tree."""
    if not isinstance(tree, dict | list) or not tree:
        return draw(anything)
    place = draw(st.sampled_from(list(tree) if isinstance(tree, dict) else range(len(tree))))
    if isinstance(tree[place], dict | list) and draw(st.booleans()):
        tree[place] = draw(_changed(tree[place]))
        return tree
    match draw(st.sampled_from(("replace", "replace", "remove", "add"))):
        case "replace":
            tree[place] = draw(anything)
        case "remove":
            del tree[place]
        case _ if isinstance(tree, dict):
            tree[draw(texts)] = draw(st.just(tree[place]) | anything)
        case _:
            tree.extend([draw(anything)] * draw(st.sampled_from((1, 50))))
    return tree


def _replaced(draw: st.DrawFn, content: bytes, pattern: bytes, raw: tuple[str, ...]) -> bytes:
    """Put raw text in the place of one match."""
    found = list(re.finditer(pattern, content))
    if not found:
        return content
    match = draw(st.sampled_from(found))
    return content[: match.start()] + draw(st.sampled_from(raw)).encode() + content[match.end() :]


@st.composite
def _damaged_yaml(draw: st.DrawFn, content: bytes) -> bytes:
    if draw(st.booleans()):
        return _replaced(draw, content, rb"(?<=[:,\[-] )[^\n,\]]*", RAW_YAML)
    tree = draw(_changed(yaml.load(content, Loader=yaml.CSafeLoader)))
    try:
        return yaml.dump(tree, Dumper=yaml.CSafeDumper, sort_keys=False).encode()
    except UnicodeEncodeError:  # a surrogate, which UTF-8 cannot represent
        return draw(_damaged_bytes(content))


@st.composite
def _damaged_json(draw: st.DrawFn, content: bytes) -> bytes:
    if draw(st.booleans()):
        return _replaced(draw, content, rb'(?<=:)("[^"]*"|[-0-9.e]+|\[|\{)', RAW_JSON)
    tree = draw(_changed(json.loads(content)))
    return json.dumps(tree, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


@st.composite
def _damaged_csv(draw: st.DrawFn, content: bytes) -> bytes:
    """Replace a field, quoted or not."""
    lines = content.split(b"\n")
    row = draw(st.integers(0, len(lines) - 1))
    fields = re.findall(rb'(?:"(?:[^"]|"")*"|[^,"])+|(?=,)|$', lines[row]) or [b""]
    cell = draw(anything.map(str) | st.sampled_from(RAW_JSON)).encode("utf-8", "surrogatepass")
    quoted = b'"' + cell.replace(b'"', b'""') + b'"'
    fields[draw(st.integers(0, len(fields) - 1))] = draw(st.sampled_from((quoted, cell)))
    lines[row] = b",".join(fields)
    return b"\n".join(lines)


@st.composite
def _damaged_safetensors(draw: st.DrawFn, content: bytes) -> bytes:
    """Change the header and correct its length, or change the length alone."""
    size = int.from_bytes(content[:8], "little")
    if content.startswith(b"PK") or draw(st.integers(0, 8)) == 0:  # a file of torch is a ZIP file
        return draw(st.sampled_from((0, 1, 2**24, 2**40, 2**64 - 1))).to_bytes(8, "little") + content[8:]
    header = json.loads(content[8 : 8 + size])
    metadata = header.get("__metadata__")
    if metadata and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(metadata)))
        value = draw(st.one_of(_damaged_json(metadata[name].encode()), _damaged_bytes(metadata[name].encode())))
        metadata[name] = value.decode("utf-8", "replace")
    else:
        header = draw(_changed(header))
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + content[8 + size :]


BY_KIND = {
    "yaml": _damaged_yaml, "json": _damaged_json, "csv": _damaged_csv, "safetensors": _damaged_safetensors,
}  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, target: Target) -> bytes:
    """A file of a target with damage to its format, to its bytes, or both."""
    content = draw(st.sampled_from(target.originals))
    damages = draw(st.sampled_from(("format", "format", "bytes", "both")))
    if damages != "bytes":
        content = draw(BY_KIND[target.kind](content))
    return content if damages == "format" else draw(_damaged_bytes(content))
