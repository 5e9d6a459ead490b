"""Help and completion: quick, readable at 80 columns, and generated from the configuration fields."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
from pydantic import BaseModel
from support.command_line import Ltmsearch
from typer.main import get_command

from ltmsearch.cli.main import app
from ltmsearch.cli.run import NO_OPTIONS
from ltmsearch.config.recipe import NET, Recipe
from ltmsearch.config.settings import StudySettings

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
HEAVY = {"torch", "torchvision", "timm", "optuna", "pandas", "plotly", "sklearn", "numpy", "sqlalchemy"}


def imported_by(arguments: Sequence[str], **environment: str) -> tuple[str, set[str]]:
    """Output of `ltmsearch ARGUMENTS` in a process of its own, and the heavy libraries that it imports."""
    code = (
        "import atexit, json, sys\n"
        f"atexit.register(lambda: print(json.dumps(sorted({HEAVY!r} & set(sys.modules))), file=sys.stderr))\n"
        f"sys.argv = ['ltmsearch', *{list(arguments)!r}]\n"
        "from ltmsearch.cli.main import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return done.stdout, set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("train", "-h"), ("--version",)])
def test_help_imports_no_heavy_library(arguments: tuple[str, ...]) -> None:
    out, heavy = imported_by(arguments)
    assert out
    assert heavy == set()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("",), list(COMMANDS)),
        (("pr",), ["profile"]),
        (("run", "--sampler", ""), ["auto", "tpe", "gp", "nsga2", "random"]),
        (("run", "--backbone", "mobilevit_x"), ["mobilevit_xxs", "mobilevit_xs"]),
        (("run", "--operator", "t"), ["tome"]),
        (("run", "--config", "swin"), ["swin_base", "swin_tiny"]),
        (("run", "--space", ""), ["efficientvit", "mobilevit", "swin", "vit"]),
        (("run", "--timeo"), ["--timeout"]),
        (("space", "efficientvit_l"), ["efficientvit_l1", "efficientvit_l2", "efficientvit_l3"]),
        (("cost", "swin_s3_t"), ["swin_s3_tiny_224"]),
        (("cost", "mobilevit_s", "--form", ""), ["soft", "hard", "matched"]),
        (("profile", "mobilevit_xx"), ["mobilevit_xxs"]),
        (("profile", "recipes/1.y"), [""]),
        (("train", "r.yaml", "--sched", "co"), ["cosine", "constant"]),
        (("front", "runs/"), [""]),
    ],
)
def test_completion_imports_no_heavy_library(words: tuple[str, ...], offered: list[str]) -> None:
    out, heavy = imported_by(
        (), _LTMSEARCH_COMPLETE="complete_bash", COMP_WORDS=" ".join(("ltmsearch", *words)), COMP_CWORD=str(len(words))
    )
    assert out.removesuffix("\n").split("\n") == offered, "nothing is offered where the shell offers files"
    assert heavy == set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_shown(shell: str) -> None:
    out, _ = imported_by(("--show-completion", shell), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert f"_LTMSEARCH_COMPLETE=complete_{shell}" in out


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
    assert panels == ["Options", "Data", "Initial", "Search", "Warm-up", "Parallel", "Latency", "Output"]


def test_listed_names_match_the_registries() -> None:
    from ltmsearch.config.names import OPERATORS, backbone_names
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
