"""YAML files: every mistake is told in one line with file, line, rule, value and what would do."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ltmsearch.errors import InputError
from ltmsearch.io.yaml_models import check, load, read_yaml, to_yaml


def _in_range(ratio: float) -> float:
    if not 0 < ratio <= 1:
        raise ValueError("keep ratios must be numbers in (0, 1]")
    return ratio


Ratio = Annotated[float, AfterValidator(_in_range)]


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


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
    colour: Colour = Colour.RED
    seed: int = 0
    free: dict[str, Any] = {}

    @model_validator(mode="after")
    def _goes_together(self) -> "File":
        if self.family == "none" and self.layers:
            raise ValueError("family 'none' has no layers")
        return self


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "f.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def told(path: Path) -> str:
    """What `load` says about a file, with the folder cut off."""
    with pytest.raises(InputError) as caught:
        load(File, path)
    return str(caught.value).removeprefix(f"{path.parent}/")


def test_what_fits_is_loaded(tmp_path: Path) -> None:
    text = "family: m\nlayers:\n  - &rule {pattern: a, keep_ratios: [0.5]}\n  - {<<: *rule, pattern: b}\n"
    file = load(File, write(tmp_path, text))
    assert file.layers == (Rule(pattern="a", keep_ratios=(0.5,)), Rule(pattern="b", keep_ratios=(0.5,)))
    assert file.seed == 0


def test_what_is_written_is_read(tmp_path: Path) -> None:
    content = {"family": "größer: 1", "free": {"a": [1, None, 0.5], "b": "yes"}}
    text = to_yaml(content, "Two lines\nof comment")
    assert text.startswith("# Two lines\n# of comment\n")
    assert read_yaml(write(tmp_path, text)) == content


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            "# head\nfamily: m\nkeep_ratios:\n  - 1.0\n  # half\n  - 0.5\n  - 1.4\n",
            "f.yaml:7: keep_ratios.2: keep ratios must be numbers in (0, 1], but got 1.4",
            id="item of a list",
        ),
        pytest.param(
            "family: m\n\nseed: many\n",
            "f.yaml:3: seed: Input should be a valid integer, unable to parse string as an integer, but got 'many'",
            id="type",
        ),
        pytest.param(
            "family: m\nlayers:\n  - pattern: a\n  - keep_ratios: [1]\n    pattern: [x]\n",
            "f.yaml:5: layers.1.pattern: Input should be a valid string, but got ['x']",
            id="field of an item",
        ),
        pytest.param(
            "family: m\nlayers:\n- pattern: a\n  keep_ratios:\n  - 1\n  -\n    1.5\n",
            "f.yaml:7: layers.0.keep_ratios.1: keep ratios must be numbers in (0, 1], but got 1.5",
            id="list in a list",
        ),
        pytest.param(
            "family: m\nnamed:\n  stages.2:\n    pattern: a\n    keep_ratios: 1\n",
            "f.yaml:5: named.stages.2.keep_ratios: Input should be a valid tuple, but got 1",
            id="value of a mapping, whose name has a dot",
        ),
        pytest.param(
            "family: m\nlayers:\n  - &rule\n    pattern: a\n    keep_ratios:\n      - 2\n  - <<: *rule\n"
            "    pattern: b\n",
            "f.yaml:6: layers.0.keep_ratios.0: keep ratios must be numbers in (0, 1], but got 2",
            id="anchored",
        ),
        pytest.param(
            "family: m\nlayers:\n  - &rule\n    pattern: a\n    keep_ratios: [1]\n  - <<: *rule\n    keep_ratios: [1]\n"
            "    pattern: 3\n",
            "f.yaml:8: layers.1.pattern: Input should be a valid string, but got 3",
            id="own value before the merged one",
        ),
        pytest.param(
            "family: m\nsize:\n  - 1\n  - x\n",
            "f.yaml:4: size.tuple[int, ...].1: Input should be a valid integer, unable to parse string as an integer, "
            "but got 'x'",
            id="branch of a union",
        ),
        pytest.param(
            "family: m\nsampler: cmaes\n",
            "f.yaml:2: sampler: Input should be 'tpe' or 'gp', but got 'cmaes'",
            id="choice",
        ),
        pytest.param(
            "family: m\ncolour: green\n",
            "f.yaml:2: colour: Input should be 'red' or 'blue', but got 'green'",
            id="enum",
        ),
        pytest.param("# head\nseed: 1\n", "f.yaml: family must be given", id="missing"),
        pytest.param(
            "family: m\nlayers:\n  - pattern: a\n\n  - keep_ratios: [1]\n",
            "f.yaml:5: layers.1.pattern must be given",
            id="missing in an item",
        ),
        pytest.param(
            "family: none\nlayers: [{pattern: a}]\n", "f.yaml: family 'none' has no layers", id="about several settings"
        ),
        pytest.param(
            f"family: m\nseed: {'x' * 200}\n",
            "f.yaml:2: seed: Input should be a valid integer, unable to parse string as an integer, but got "
            f"'{'x' * 58}…",
            id="long value",
        ),
        pytest.param(
            'family: m\nseed: "a\n\n  b"\n',
            "f.yaml:2: seed: Input should be a valid integer, unable to parse string as an integer, but got 'a\\nb'",
            id="value of several lines",
        ),
    ],
)
def test_values_that_do_not_fit_are_told_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    assert told(write(tmp_path, text)) == message


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
def test_unknown_names_are_told_with_the_known_ones(tmp_path: Path, text: str, start: str, names: str) -> None:
    message = told(write(tmp_path, text))
    assert message.startswith(start)
    assert names in message


def test_a_nested_unknown_name_is_not_told_with_the_outer_names(tmp_path: Path) -> None:
    assert "family" not in told(write(tmp_path, "family: m\nlayers: [{pattern: a, famly: 3}]\n"))


def test_an_unknown_name_whose_models_differ_is_told_alone(tmp_path: Path) -> None:
    message = told(write(tmp_path, "family: m\neither:\n  pattern: a\n  size: 3\n"))
    assert message == "f.yaml:4: either.Rule: unknown setting 'size'"


def test_an_unknown_name_is_told_before_what_follows_from_it(tmp_path: Path) -> None:
    message = told(write(tmp_path, "seed: x\nfamly: m\n"))
    assert message.startswith("f.yaml:2: unknown setting 'famly'")
    assert "did you mean family?" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nfamily: m\n'seed': 2\n", "f.yaml:3: 'seed' must be given once, but stands in line 1 too"),
        (
            "family: m\nlayers:\n  - pattern: a\n    keep_ratios: [1]\n    pattern: b\n",
            "f.yaml:5: 'pattern' must be given once, but stands in line 3 too",
        ),
        ("family: m\nfree: {a: 1,\n  a: 1}\n", "f.yaml:3: 'a' must be given once, but stands in line 2 too"),
    ],
    ids=["outermost", "in an item", "on one line"],
)
def test_a_name_given_twice_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    assert told(path) == message
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
            "family: m\n\tseed: 1\n",
            "f.yaml:2: must be YAML: while scanning for the next token, "
            "found character '\\t' that cannot start any token",
        ),
        (
            "family: m\n---\nfamily: n\n",
            "f.yaml:2: must be YAML: expected a single document in the stream from line 1, but found another document",
        ),
        ("family: m\nseed: *here\n", "f.yaml:2: must be YAML: found undefined alias 'here'"),
        (
            "family: !!python/name:os.system\n",
            "f.yaml:1: must be YAML: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/name:os.system'",
        ),
        ("family: m\nfree:\n  day: 2026-02-30\n", "f.yaml:3: must be YAML: '2026-02-30' is no timestamp"),
        ("family: m\nfree: !!bool x\n", "f.yaml:2: must be YAML: 'x' is no bool"),
        ("family: m\nfree: \0\n", "f.yaml:2: must be YAML: character 0x00 is not allowed"),
        ("[" * 5000, "f.yaml must be YAML of at most 50 levels, but is nested too deeply"),
        (b"family: m\n\x89PNG\r\n", "f.yaml must be UTF-8 text, but byte 10 is 0x89"),
        ("", "f.yaml must hold a mapping of names to values, but is empty"),
        ("# only a comment\n", "f.yaml must hold a mapping of names to values, but is empty"),
        ("- a\n- b\n", "f.yaml must hold a mapping of names to values, but holds ['a', 'b']"),
        ("family\n", "f.yaml must hold a mapping of names to values, but holds 'family'"),
        ("!!set {family}\n", "f.yaml must hold a mapping of names to values, but holds {'family'}"),
        ("family: m\non: 3\n", "f.yaml:2: names must be text, but 'on' is bool in YAML"),
        (
            "family: m\n? [a]\n: 3\n",
            "f.yaml:2: must be YAML: while constructing a mapping from line 1, found unhashable key",
        ),
    ],
    ids=[
        "not closed", "tab", "two documents", "alias", "code", "day", "bool", "control character", "deep", "binary",
        "empty", "comment", "list", "text", "set", "name that is no text", "name that is a list",
    ],
)  # fmt: skip
def test_files_that_are_no_mapping_are_told(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = write(tmp_path, content)
    assert told(path) == message
    with pytest.raises(InputError) as caught:
        read_yaml(path)
    assert str(caught.value).endswith(message)


def test_files_that_cannot_be_opened_are_told(tmp_path: Path) -> None:
    assert told(tmp_path / "none.yaml") == "none.yaml does not exist"
    (tmp_path / "folder.yaml").mkdir()
    assert told(tmp_path / "folder.yaml") == "folder.yaml cannot be read: Is a directory"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"family": "m", "seed": None}, "run: seed: Input should be a valid integer, but got None"),
        ({"family": "m", "keep_ratios": [1, 1.4]}, "run: keep_ratios.1: keep ratios must be numbers in (0, 1]"),
        (
            {"family": "m", "layers": [{"patern": "a"}]},
            "run: layers.0: unknown setting 'patern': did you mean pattern?",
        ),
        ({}, "run: family must be given"),
    ],
    ids=["value", "item", "unknown", "missing"],
)
def test_a_command_line_is_told_alike_without_a_line(content: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        check(File, content, "run")
    assert str(caught.value).startswith(message)
