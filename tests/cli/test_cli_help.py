"""Help and completion: quick, readable at 80 columns, and in step with what the library takes."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import get_args

import pytest
from support.command_line import call
from typer.main import get_command

from ltmsearch.cli import options
from ltmsearch.cli.app import ORDER
from ltmsearch.cli.main import app

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
HEAVY = {"torch", "torchvision", "timm", "optuna", "pandas", "plotly", "sklearn", "numpy"}


def imported_by(arguments: Sequence[str], **environment: str) -> tuple[str, set[str]]:
    """What `ltmsearch ARGUMENTS` prints in a process of its own, and which heavy libraries it imports."""
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
def test_help_is_quick_because_heavy_imports_wait(arguments: tuple[str, ...]) -> None:
    out, heavy = imported_by(arguments)
    assert out
    assert heavy == set()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("",), list(ORDER)),
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
def test_the_shell_completes_without_heavy_imports(words: tuple[str, ...], offered: list[str]) -> None:
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
def test_help_is_whole_at_80_columns(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = call(*filter(None, (name, "--help")), monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "Example: ltmsearch" in out
    params = COMMANDS[name].params if name else []
    options = [option for param in params for option in (*param.opts, *param.secondary_opts)]
    assert [option for option in options if option.startswith("--") and option not in out] == [], "none is cut"


def test_every_command_has_its_place_in_the_list() -> None:
    assert set(ORDER) == set(COMMANDS)


def test_run_has_its_options_in_panels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = call("run", "--help", monkeypatch=monkeypatch, capsys=capsys)
    panels = [line.split()[1] for line in out.splitlines() if line.startswith("╭─")]
    assert panels == ["Options", "Data", "Start", "Search", "Proxy", "Workers", "Latency", "Output"]


def test_the_names_that_are_offered_are_those_that_the_library_takes() -> None:
    from ltmsearch.config.recipe import Recipe
    from ltmsearch.config.settings import Precision, Sampler
    from ltmsearch.latency.target import Engine, MemoryFormat, NumberFormat
    from ltmsearch.merging import OPERATORS
    from ltmsearch.models import known_backbones
    from ltmsearch.schedules.schedule import Form

    def of_recipe(key: str) -> tuple[str, ...]:
        return get_args(Recipe.model_fields[key].annotation)

    assert sorted(options.backbones()) == sorted(known_backbones())
    assert set(options.OPERATORS) == set(OPERATORS)
    assert get_args(Form) == options.FORMS
    assert get_args(Sampler) == options.SAMPLERS
    assert get_args(Precision) == options.PRECISIONS
    assert get_args(Engine) == options.RUNTIMES
    assert get_args(NumberFormat) == options.DTYPES
    assert get_args(MemoryFormat) == options.MEMORY_FORMATS
    assert of_recipe("clip_mode") == options.CLIP_MODES
    assert of_recipe("sched") == options.SCHEDS
    assert of_recipe("remode") == options.REMODES
    assert of_recipe("mixup_mode") == options.MIXUP_MODES
    assert of_recipe("amp_dtype") == options.AMP_DTYPES
