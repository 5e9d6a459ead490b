"""YAML files: every error is one line with file, line, rule, value and suggestion."""

from pathlib import Path
from typing import Annotated, Any, Literal, Union

import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ltmsearch.errors import InputError
from ltmsearch.io.yaml_models import check, load, read_yaml


def _in_range(ratio: float) -> float:
    if not 0 < ratio <= 1:
        raise ValueError("keep ratios must be numbers in (0, 1]")
    return ratio


Ratio = Annotated[float, AfterValidator(_in_range)]


class Rule(BaseModel):
    model_config = ConfigDict(extra="forbid")
    pattern: str
    keep_ratios: tuple[Ratio, ...] = (1.0,)


class Other(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int


class File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    family: str
    keep_ratios: list[Ratio] = [1.0]
    layers: tuple[Rule, ...] = ()
    named: dict[str, Annotated[Rule, Field()]] | None = None
    either: Union[Rule, Other, None] = None  # noqa: UP007
    size: tuple[int, ...] | int = 0
    sampler: Literal["tpe", "gp"] = "tpe"
    seed: int = 0
    free: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check(self) -> "File":
        if self.family == "none" and self.layers:
            raise ValueError("family 'none' has no layers")
        return self


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "f.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def error_of(path: Path) -> str:
    """Error of `load` without the folder."""
    with pytest.raises(InputError) as caught:
        load(File, path)
    return str(caught.value).removeprefix(f"{path.parent}/")


def test_valid_files_are_loaded(tmp_path: Path) -> None:
    text = "family: m\nlayers:\n  - &rule {pattern: a, keep_ratios: [0.5]}\n  - {<<: *rule, pattern: b}\n"
    file = load(File, write(tmp_path, text))
    assert file.layers == (Rule(pattern="a", keep_ratios=(0.5,)), Rule(pattern="b", keep_ratios=(0.5,)))
    assert file.seed == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "# head\nfamily: m\nkeep_ratios:\n  - 1.0\n  # half\n  - 0.5\n  - 1.4\n",
            "f.yaml:7: keep_ratios.2: keep ratios must be numbers in (0, 1], but got 1.4",
        ),
        ("family: m\n\nseed: many\n", "f.yaml:3: seed must be a valid integer, but got 'many'"),
        (
            "family: m\nlayers:\n  - pattern: a\n  - keep_ratios: [1]\n    pattern: [x]\n",
            "f.yaml:5: layers.1.pattern must be a valid string, but got ['x']",
        ),
        (
            "family: m\nnamed:\n  stages.2:\n    pattern: a\n    keep_ratios: 1\n",
            "f.yaml:5: named.stages.2.keep_ratios must be a valid tuple, but got 1",
        ),
        (
            "family: m\nlayers:\n  - &rule\n    pattern: a\n    keep_ratios:\n      - 2\n  - <<: *rule\n"
            "    pattern: b\n",
            "f.yaml:6: layers.0.keep_ratios.0: keep ratios must be numbers in (0, 1], but got 2",
        ),
        (
            "family: m\nlayers:\n  - &rule\n    pattern: a\n    keep_ratios: [1]\n  - <<: *rule\n    keep_ratios: [1]\n"
            "    pattern: 3\n",
            "f.yaml:8: layers.1.pattern must be a valid string, but got 3",
        ),
        (
            "family: m\nsize:\n  - 1\n  - x\n",
            "f.yaml:4: size.tuple[int, ...].1 must be a valid integer, but got 'x'",
        ),
        ("family: m\nsampler: tpee\n", "f.yaml:2: sampler must be 'tpe' or 'gp', but got 'tpee': did you mean tpe?"),
        ("# head\nseed: 1\n", "f.yaml: family must be given"),
        ("family: m\nlayers: [{pattern: a},\n  {keep_ratios: [1]}]\n", "f.yaml:3: layers.1.pattern must be given"),
        ("family: none\nlayers: [{pattern: a}]\n", "f.yaml: family 'none' has no layers"),
        (f"family: m\nseed: {'x' * 200}\n", f"f.yaml:2: seed must be a valid integer, but got '{'x' * 58}…"),
        ('family: m\nseed: "a\n\n  b"\n', "f.yaml:2: seed must be a valid integer, but got 'a\\nb'"),
    ],
    ids=[
        "item of a list", "type", "field of an item", "name with a dot", "anchor", "own value after a merged one",
        "branch of a union", "choice", "missing", "missing in an item", "several settings", "long value", "lines",
    ],
)  # fmt: skip
def test_invalid_values_are_reported_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    assert error_of(write(tmp_path, text)) == message


@pytest.mark.parametrize(
    ("text", "start", "names"),
    [
        ("family: m\n\nkeep_ratio: [7]\n", "f.yaml:3: unknown setting 'keep_ratio'", "did you mean keep_ratios?"),
        ("family: m\n\nxyz:\n  - 1\n", "f.yaml:3: unknown setting 'xyz'", ", ".join(sorted(File.model_fields))),
        (
            "family: m\nlayers:\n  - pattern: a\n  - pattern: b\n    keep_ratioz: [1]\n",
            "f.yaml:5: layers.1: unknown setting 'keep_ratioz'",
            "did you mean keep_ratios?",
        ),
        (
            "family: m\nnamed:\n  pattern:\n    pattern: b\n    colour: red\n",
            "f.yaml:5: named.pattern: unknown setting 'colour'",
            "keep_ratios, pattern",
        ),
    ],
    ids=["near", "nothing near", "item of a list", "value of a mapping"],
)
def test_unknown_names_are_reported_with_known_ones(tmp_path: Path, text: str, start: str, names: str) -> None:
    message = error_of(write(tmp_path, text))
    assert message.startswith(start)
    assert names in message


def test_nested_unknown_names(tmp_path: Path) -> None:
    assert "family" not in error_of(write(tmp_path, "family: m\nlayers: [{pattern: a, famly: 3}]\n"))
    either = error_of(write(tmp_path, "family: m\neither:\n  pattern: a\n  size: 3\n"))
    assert either == "f.yaml:4: either.Rule: unknown setting 'size'", "names of several models are not listed"


def test_unknown_names_are_reported_before_other_errors(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, "seed: x\nfamly: m\n"))
    assert message.startswith("f.yaml:2: unknown setting 'famly'")
    assert "did you mean family?" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nfamily: m\n'seed': 2\n", "f.yaml:3: 'seed' must be given once, but is also in line 1"),
        ("family: m\nfree: {a: 1,\n  a: 1}\n", "f.yaml:3: 'a' must be given once, but is also in line 2"),
    ],
    ids=["outermost", "on one line"],
)
def test_duplicate_names_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    assert error_of(path) == message
    with pytest.raises(InputError, match="must be given once"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "family: m\nlayers: [\n  {pattern: a},\n",
            "f.yaml:4: must be YAML: while parsing a flow node from line 4, expected the node content, "
            "but found '<stream end>'",
        ),
        (
            "family: !!python/name:os.system\n",
            "f.yaml:1: must be YAML: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/name:os.system'",
        ),
        ("family: m\nfree:\n  day: 2026-02-30\n", "f.yaml:3: must be YAML: '2026-02-30' is not a valid timestamp"),
        ("family: m\nfree: !!bool x\n", "f.yaml:2: must be YAML: 'x' is not a valid bool"),
        ("family: m\nfree: \0\n", "f.yaml:2: must be YAML: character 0x00 is not allowed"),
        ("[" * 5000, "f.yaml must have at most 50 nested levels, but has more"),
        (b"family: m\n\x89PNG\r\n", "f.yaml must be UTF-8 text, but byte 10 is 0x89"),
        ("", "f.yaml must be a mapping of names to values, but is empty"),
        ("- a\n- b\n", "f.yaml must be a mapping of names to values, but contains ['a', 'b']"),
        ("!!set {family}\n", "f.yaml must be a mapping of names to values, but contains {'family'}"),
        ("family: m\non: 3\n", "f.yaml:2: names must be text, but 'on' is bool in YAML"),
        (
            "family: m\n? [a]\n: 3\n",
            "f.yaml:2: must be YAML: while constructing a mapping from line 1, found unhashable key",
        ),
    ],
    ids=[
        "not closed", "code", "day", "bool", "control character", "deep", "binary", "empty", "list", "set",
        "name that is no text", "name that is a list",
    ],
)  # fmt: skip
def test_files_that_are_no_mapping_are_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = write(tmp_path, content)
    assert error_of(path) == message
    with pytest.raises(InputError) as caught:
        read_yaml(path)
    assert str(caught.value).endswith(message)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    assert error_of(tmp_path / "none.yaml") == "none.yaml does not exist"
    (tmp_path / "folder.yaml").mkdir()
    assert error_of(tmp_path / "folder.yaml") == "folder.yaml cannot be read: Is a directory"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"family": "m", "seed": None}, "run: seed must be a valid integer, but got None"),
        ({"family": "m", "keep_ratios": [1, 1.4]}, "run: keep_ratios.1: keep ratios must be numbers in (0, 1]"),
        (
            {"family": "m", "layers": [{"patern": "a"}]},
            "run: layers.0: unknown setting 'patern': did you mean pattern?",
        ),
        ({}, "run: family must be given"),
    ],
    ids=["value", "item", "unknown", "missing"],
)
def test_values_without_a_file_are_reported_without_a_line(content: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        check(File, content, "run")
    assert str(caught.value).startswith(message)
