"""Help and completion: quick, readable at 80 columns, and generated from the configuration fields."""

import json
import sys
from collections.abc import Sequence

import pytest
from pydantic import BaseModel
from support.command_line import Ltmsearch
from support.processes import completed

from ltmsearch.cli.commands import ENTRIES, load_command
from ltmsearch.cli.run import NO_OPTIONS
from ltmsearch.config.recipe import NET, Recipe
from ltmsearch.config.settings import StudySettings

COMMANDS = {name: load_command(name) for name in ENTRIES}
HEAVY = {"torch", "torchvision", "timm", "optuna", "pandas", "plotly", "sklearn", "numpy", "sqlalchemy"}


SCRIPT = """
import contextlib, io, json, os, sys
from ltmsearch.cli.main import main
outputs = []
for arguments, environment in json.load(sys.stdin):
    sys.argv = ["ltmsearch", *arguments]
    os.environ.update(environment)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    outputs.append(out.getvalue())
print(json.dumps([outputs, sorted(sys.modules)]))
"""


def outputs(*calls: tuple[Sequence[str], dict[str, str]]) -> list[str]:
    """Outputs of `ltmsearch` for arguments and environments, in one new process that imports no heavy library."""
    given = json.dumps(calls)
    done = completed([sys.executable, "-c", SCRIPT], input=given)
    texts, modules = json.loads(done.stdout)
    assert set(modules) & HEAVY == set()
    return texts


def test_the_help_of_all_commands_imports_none_of_them() -> None:
    done = completed([sys.executable, "-c", SCRIPT], input=json.dumps([(["--help"], {})]))
    (text,), modules = json.loads(done.stdout)
    assert all(name in text for name in ENTRIES)
    assert not {"pydantic", *(f"ltmsearch.cli.{entry.module}" for entry in ENTRIES.values())} & set(modules)


@pytest.mark.parametrize("name", ENTRIES)
def test_the_help_of_all_commands_has_the_first_paragraph_of_each(name: str) -> None:
    assert ENTRIES[name].summary == " ".join((COMMANDS[name].help or "").split("\n\n")[0].split())


def test_a_misspelled_command_gets_a_suggestion(ltmsearch: Ltmsearch) -> None:
    assert ltmsearch("rn") == (2, "", "error: no such command 'rn'. Did you mean 'run'? (see ltmsearch --help)\n")


def test_help_imports_no_heavy_library() -> None:
    texts = outputs((["--help"], {}), (["run", "--help"], {}), (["train", "-h"], {}), (["--version"], {}))
    assert all(texts)


def test_completion_imports_no_heavy_library() -> None:
    cases: dict[tuple[str, ...], list[str]] = {
        ("",): list(COMMANDS),
        ("pr",): ["profile"],
        ("run", "--sampler", ""): ["auto", "tpe", "gp", "nsga2", "random"],
        ("run", "--objective", ""): ["auto", "kl", "loss"],
        ("run", "--backbone", "mobilevit_x"): ["mobilevit_xs", "mobilevit_xxs"],
        ("run", "--operator", "t"): ["threshold", "tome"],
        ("run", "--config", "swin"): ["swin_base", "swin_tiny"],
        ("run", "--space", ""): ["efficientvit", "eva", "fastvit", "mobilevit", "swin", "swinv2", "tinyvit", "vit"],
        ("run", "--timeo"): ["--timeout"],
        ("space", "efficientvit_l"): ["efficientvit_l1", "efficientvit_l2", "efficientvit_l3"],
        ("cost", "swin_s3_t"): ["swin_s3_tiny_224"],
        ("cost", "mobilevit_s", "--form", ""): ["soft", "hard", "matched", "gradient", "select"],
        ("profile", "mobilevit_xx"): ["mobilevit_xxs"],
        ("profile", "17.yaml", "--runtime", ""): ["torch", "compile", "onnxruntime", "all"],
        ("profile", "recipes/1.y"): [""],
        ("train", "r.yaml", "--sched", "co"): ["cosine", "constant"],
        ("front", "runs/"): [""],
    }
    variables = [{"COMP_WORDS": " ".join(("ltmsearch", *words)), "COMP_CWORD": str(len(words))} for words in cases]
    texts = outputs(*([(), {"_LTMSEARCH_COMPLETE": "complete_bash", **given}] for given in variables))
    assert [text.removesuffix("\n").split("\n") for text in texts] == list(cases.values()), "[''] for files"


def test_a_completion_script_is_shown() -> None:
    shells = ("bash", "zsh", "fish")
    environment = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    texts = outputs(*([("--show-completion", shell), environment] for shell in shells))
    assert [f"_LTMSEARCH_COMPLETE=complete_{shell}" in text for shell, text in zip(shells, texts, strict=True)] == [
        True
    ] * 3


@pytest.mark.parametrize("name", ["", *sorted(COMMANDS)])
def test_help_is_whole_at_80_columns(name: str, monkeypatch: pytest.MonkeyPatch, ltmsearch: Ltmsearch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = ltmsearch(*filter(None, (name, "--help")))
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "Example: ltmsearch" in out
    params = COMMANDS[name].params if name else []
    options = [option for param in params for option in (*param.opts, *param.secondary_opts)]
    assert [option for option in options if option.startswith("--") and option not in out] == [], "none is cut"


def test_run_has_its_options_in_panels(monkeypatch: pytest.MonkeyPatch, ltmsearch: Ltmsearch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = ltmsearch("run", "--help")
    panels = [line.split()[1] for line in out.splitlines() if line.startswith("╭─")]
    assert panels == ["Options", "Network", "Data", "Initial", "Search", "Warm-up", "Parallel", "Latency", "Output"]


def test_listed_names_match_the_registries() -> None:
    from ltmsearch.config.backbones import backbone_names
    from ltmsearch.config.names import OPERATORS
    from ltmsearch.merging import OPERATORS as REGISTERED
    from ltmsearch.models import known_backbones

    assert sorted(backbone_names()) == sorted(known_backbones())
    assert set(OPERATORS) == set(REGISTERED)


@pytest.mark.parametrize(
    ("name", "model", "leave_out", "help"),
    [
        ("run", StudySettings, NO_OPTIONS, {"trials": "not count. (at least 1; default: 24)"}),
        ("train", Recipe, NET, {"min_lr": "Final learning rate. (at least 0)", "cooldown_epochs": "at --min-lr. ("}),
    ],
)
def test_every_field_is_an_option_with_its_docstring(
    name: str, model: type[BaseModel], leave_out: tuple[str, ...], help: dict[str, str]
) -> None:
    options = {param.name: param for param in COMMANDS[name].params}
    for field in set(model.model_fields) - set(leave_out):
        assert model.model_fields[field].description, f"{field} has no docstring"
        assert options[field].opts == [f"--{field.replace('_', '-')}"]
    assert [field for field, text in help.items() if text not in options[field].help] == []
