"""A fuzzer: valid files are damaged in every way that comes to mind; who reads them must load or refuse them."""

import json
import random
import re
import signal
import string
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from ltmsearch.errors import InputError

Kind = Literal["yaml", "json", "csv", "safetensors"]
SECONDS = 10.0
"""That one case may take, on a busy machine; it takes milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader, and files that it takes."""

    name: str
    kind: Kind
    file: str
    """Name that the damaged file is given."""
    originals: tuple[bytes, ...]
    load: Callable[[Path], object]


@dataclass
class Tally:
    """What came of the cases."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    """Target, seed and number of the case, and what it raised."""

    @property
    def cases(self) -> int:
        return self.outcomes.total()

    def __str__(self) -> str:
        told = ", ".join(f"{number:,} {outcome}" for outcome, number in sorted(self.outcomes.items()))
        return f"{self.cases:,} cases ({told}), {len(self.failures)} failures"


class _TooSlow(BaseException):
    """No `except Exception` may hide that a case hangs."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise in the middle of whatever takes longer."""

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
    """`loaded` or `refused`; anything else tells what went wrong."""
    try:
        with at_most(SECONDS):
            load(path)
    except InputError as error:
        line = str(error)
        if not line.isprintable() or not line.strip() or len(line) > 3000:
            return f"not one line to be printed: {line[:200]!r}"
        return "refused" if path.name in line else f"does not name the file: {line[:200]}"
    except _TooSlow:
        return f"took more than {SECONDS:g} s"
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {str(error)[:200]!r}"
    return "loaded"


def fuzz(targets: Sequence[Target], number: int, *, seed: int, folder: Path) -> Tally:
    """Try that many damaged files, the targets in turns. The same seed gives the same files.

    Args:
        targets: Who reads.
        number: Of cases.
        seed: Of the damage.
        folder: An empty one.
    """
    tally = Tally()
    for case in range(number):
        target = targets[case % len(targets)]
        rng = random.Random(f"{seed} {target.name} {case}")
        content = rng.choice(target.originals)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            content = rng.choice(DAMAGE[target.kind])(content, rng)
        path = folder / target.file
        path.write_bytes(content)
        came = outcome(target.load, path)
        tally.outcomes[came if came in ("loaded", "refused") else "failed"] += 1
        if came not in ("loaded", "refused"):
            tally.failures.append(f"{target.name}, seed {seed}, case {case}: {came}\n    {content[:300]!r}")
    return tally


# ---------------------------------------------------------------------------------------------------------------------
# What stands in the place of a value

TEXTS = (
    "", " ", "null", "~", "yes", "off", "0x1F", "1:30:45", "1e999", ".inf", "-.inf", ".nan", "nan", "2026-02-30",
    "2026-11-26", "0001-01-01 00:00:00+23:00", "../../../etc/passwd", "/etc/passwd", "a\0b", "\x1b[31mred", "\u202egnp",
    "\ud800", "\U0001f600", "é" * 50, "a\nb", "a\rb", "a\u2028b", "<script>alert(1)</script>", "{{7*7}}", "%s%n",
    "-1", "9" * 400, "9" * 5000, "1.5", "x" * 5000, "[", "*", "[!", "ltm_", "ltm_mobilevit_xxs", "\ufeff", "\uffff",
)  # fmt: skip
NUMBERS = (
    0, -1, 1, 0.5, 1e-320, 1e308, -1e308, float("inf"), float("-inf"), float("nan"), 2**31, 2**63, 2**64, 10**30,
    -(10**30), 10**400, 10**4000,
)  # fmt: skip
RAW_YAML = (
    "!!python/object/apply:os.system ['touch ltmsearch-was-here']", "!!python/name:os.system", "!!python/tuple [1]",
    "!!binary aGVsbG8=", "!!binary '*'", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1, a: 2]", "!!timestamp x",
    "!!int x", "!!int ''", "!!float .", "!!float 1:1:1" + ":1" * 300, "!!int 1" + ":1" * 3000, "!!bool maybe",
    "!!null x", "!!str", "!local x", "! x", "!<tag:yaml.org,2002:int> 3", "&a [*a]", "&a {a: *a}", "*nowhere",
    "{<<: [1]}", "{<<: {a: 1}}", "<<", "=", "'", '"', "|\n  a\n  b", ">-\n", "? a\n: b", "- a", "{a: 1", "[1, 2",
    "%YAML 9.9", '"\\ud800"', '"\\0"', '"\\x41"', '"\\q"', "@x", "`x", "\t", "---", "...", "#", "1_000", "0b11",
    "0o17", "1e5", "1.e+5", "+.inf", "[" * 60 + "]" * 60, "[" * 2000, "{a: " * 300, "9" * 5000, "0x" + "f" * 5000,
    "12:30:45", "!!map [a]", "!!seq {a: 1}", "!!str [a]", "!!int [1]", "!!float {a: 1}",
)  # fmt: skip
RAW_JSON = (
    "NaN", "-Infinity", "1e999", "-", "1" + "0" * 400, "9" * 5000, '"\\ud800"', '"\\u0000"', "null", "true", "[]", "{}",
    '"x"', "[" * 100 + "]" * 100, "[" * 3000 + "]" * 3000, '{"a":' * 3000, "'", "1.5", "0", "-1",
)  # fmt: skip


def _value(rng: random.Random) -> Any:
    """A plain value that hardly any rule foresees."""
    return rng.choice(
        (
            lambda: rng.choice(TEXTS),
            lambda: rng.choice(NUMBERS),
            lambda: rng.choice((None, True, False, [], {}, [[]], {"": None}, {"a": {"b": 1}}, ["a", 1, None])),
            lambda: [rng.choice(NUMBERS) for _ in range(rng.choice((1, 2, 3, 300)))],
            lambda: {rng.choice(TEXTS): rng.choice(NUMBERS) for _ in range(3)},
            lambda: "".join(rng.choices(string.printable, k=rng.randrange(30))),
        )
    )()


# ---------------------------------------------------------------------------------------------------------------------
# Damage to any file

Damage = Callable[[bytes, random.Random], bytes]


def _flip_bits(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if damaged:
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _random_bytes(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.choice((1, 2, 16))) + content[at + rng.choice((0, 0, 4)) :]


def _cut_off(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _cut_out(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + content[at + rng.randrange(1, 40) :]


def _repeat_part(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    part = content[at : at + rng.randrange(1, 60)]
    return content[:at] + part * rng.choice((2, 2, 3, 200)) + content[at:]


def _other_encoding(content: bytes, rng: random.Random) -> bytes:
    text = content.decode("utf-8", "replace")
    encoding = rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7", "cp037"))
    return text.encode(encoding, "replace")


def _other_line_ends(content: bytes, rng: random.Random) -> bytes:
    return content.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\x85", b"\n\n", b"\0\n", b"")))


def _next_to_nothing(content: bytes, rng: random.Random) -> bytes:
    return rng.choice((b"", b"\n", b" ", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"0", b"null", b"#", b"\x80\x04K\x01."))


def _insert_text(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice(TEXTS)[:300].encode("utf-8", "surrogatepass") + content[at:]


def _lines(content: bytes, rng: random.Random) -> bytes:
    """Lines given twice, left out, or in another order."""
    lines = content.splitlines(keepends=True)
    if not lines:
        return content
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(3):
        case 0:
            lines.insert(j, lines[i])
        case 1:
            del lines[i]
        case _:
            lines[i], lines[j] = lines[j], lines[i]
    return b"".join(lines)


def _very_long(content: bytes, rng: random.Random) -> bytes:
    return content + rng.choice((b"#", b" ", b"\n", b"a", b"[", b"- ", b'"')) * rng.choice((10_000, 3_000_000))


ANY: tuple[Damage, ...] = (
    _flip_bits, _random_bytes, _cut_off, _cut_out, _repeat_part, _other_encoding, _other_line_ends, _next_to_nothing,
    _insert_text, _lines,
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Damage that knows the format


def _somewhere(tree: Any, rng: random.Random) -> tuple[Any, Any] | None:
    """A container somewhere in a tree, and one of its places."""
    found = None
    node, depth = tree, 0
    while isinstance(node, dict | list) and node:
        place = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        found, node, depth = (node, place), node[place], depth + 1
        if rng.random() < 0.4:
            break
    return found


def _changed(tree: Any, rng: random.Random) -> Any:
    """A tree with another value, another name, or one more or less of them."""
    if (found := _somewhere(tree, rng)) is None:
        return _value(rng)
    node, place = found
    what = rng.random()
    if what < 0.6:
        node[place] = _value(rng)
    elif what < 0.7:
        del node[place]
    elif isinstance(node, dict):
        node[rng.choice(TEXTS)] = node[place] if what < 0.85 else _value(rng)
        if what < 0.8:
            del node[place]
    else:
        node.extend([_value(rng)] * rng.choice((1, 50)))
    return tree


def _other_yaml_value(content: bytes, rng: random.Random) -> bytes:
    if len(content) > 100_000 or b"&a" in content:  # a bomb already, which is for others to defuse
        return _flip_bits(content, rng)
    try:
        tree = _changed(yaml.load(content, Loader=yaml.CSafeLoader), rng)
        return yaml.dump(tree, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=rng.random() < 0.5).encode()
    except Exception:  # damaged before, so that PyYAML trips over it, in whichever way
        return _flip_bits(content, rng)


def _raw_yaml(content: bytes, rng: random.Random) -> bytes:
    """Something of YAML's own in the place of a value."""
    values = list(re.finditer(rb"(?<=[:,\[-] )[^\n,\]]*", content))
    if not values:
        return content
    at, raw = rng.choice(values), rng.choice(RAW_YAML).encode()
    return content[: at.start()] + raw + content[at.end() :]


def _many_aliases(content: bytes, rng: random.Random) -> bytes:
    """A few lines that stand for a billion values, as a list, as mappings, or merged."""
    each, name = (
        rng.choice((3, 9, 12)),
        rng.choice((b"layers", b"provenance", b"schedule", b"keep_ratios", b"seed", b"x")),
    )
    first, rest = rng.choice(((b"[1]", b"[%s]"), (b"{x: 1}", b"{<<: [%s]}"), (b"{x: 1}", b"{k: [%s]}")))
    lines = [b"a0: &a0 " + first]
    lines += [b"a%d: &a%d " % (i, i) + rest % b", ".join([b"*a%d" % (i - 1)] * each) for i in range(1, 12)]
    return content + b"\n" + b"\n".join(lines) + b"\n" + name + b": *a11\n"


def _other_json_value(content: bytes, rng: random.Random) -> bytes:
    try:
        return json.dumps(_changed(json.loads(content), rng), ensure_ascii=rng.random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )
    except (ValueError, RecursionError, LookupError):
        return _flip_bits(content, rng)


def _raw_json(content: bytes, rng: random.Random) -> bytes:
    values = list(re.finditer(rb'(?<=: )("[^"]*"|[-0-9.e]+|\[|\{)', content))
    if not values:
        return content
    at = rng.choice(values)
    return content[: at.start()] + rng.choice(RAW_JSON).encode() + content[at.end() :]


def _other_field(content: bytes, rng: random.Random) -> bytes:
    """Another value in a field of a CSV, quoted or not."""
    lines = content.split(b"\n")
    row = rng.randrange(len(lines))
    fields = re.findall(rb'(?:"(?:[^"]|"")*"|[^,"])+|(?=,)|$', lines[row]) or [b""]
    text = rng.choice((lambda: str(_value(rng)), lambda: rng.choice(RAW_JSON), lambda: _ratios_like(rng)))()
    cell = text.encode("utf-8", "surrogatepass")
    fields[rng.randrange(len(fields))] = b'"' + cell.replace(b'"', b'""') + b'"' if rng.random() < 0.8 else cell
    lines[row] = b",".join(fields)
    return b"\n".join(lines)


def _ratios_like(rng: random.Random) -> str:
    """A JSON object such as the schedule of a trial."""
    values = (0.5, 1, 0, 2, -1, 10**400, "soft", "hard", None, True, [], {}, 1e-320)
    return json.dumps({rng.choice(TEXTS)[:50]: rng.choice(values) for _ in range(rng.randrange(4))})


def _other_header(content: bytes, rng: random.Random) -> bytes:
    """Another value in the JSON header of a safetensors file, whose length is put right."""
    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size])
        metadata = header.get("__metadata__")
        if metadata and rng.random() < 0.7:
            name = rng.choice(list(metadata))
            metadata[name] = rng.choice((_other_json_value, _raw_json, *ANY))(metadata[name].encode(), rng).decode(
                "utf-8", "replace"
            )
        else:
            header = _changed(header, rng)
        told = json.dumps(header).encode("utf-8", "surrogatepass")
    except Exception:  # no safetensors file any more
        return _flip_bits(content, rng)
    return len(told).to_bytes(8, "little") + told + content[8 + size :]


def _other_length(content: bytes, rng: random.Random) -> bytes:
    return rng.choice((0, 1, 2**24, 2**40, 2**63, 2**64 - 1)).to_bytes(8, "little") + content[8:]


DAMAGE: dict[Kind, tuple[Damage, ...]] = {
    "yaml": (*ANY, *[_other_yaml_value] * 6, *[_raw_yaml] * 4, _many_aliases, _very_long),
    "json": (*ANY, *[_other_json_value] * 6, *[_raw_json] * 3, _very_long),
    "csv": (*ANY, *[_other_field] * 8, _very_long),
    "safetensors": (*ANY, *[_other_header] * 8, _other_length),
}
