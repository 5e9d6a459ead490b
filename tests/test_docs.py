"""The README and the command line cannot drift apart."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from ltmsearch.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_in_the_readme_and_has_an_example(name: str) -> None:
    assert f"`ltmsearch {name}" in README
    assert f"ltmsearch {name}" in (COMMANDS[name].help or ""), "its help needs an example"


def test_every_command_and_option_of_the_readme_exists() -> None:
    parameters = [parameter for command in COMMANDS.values() for parameter in command.params]
    known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    ours = re.sub(r"torchrun .*? -m ltmsearch|python benchmarks/[^`]*", "", README)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", ours)) - {"--help"}
    assert named <= known, named - known
    assert set(re.findall(r"`ltmsearch ([a-z]+)", README)) <= set(COMMANDS)


def test_every_setting_is_an_option_of_run() -> None:
    from ltmsearch.settings import StudySettings

    options = {parameter.name for parameter in COMMANDS["run"].params}
    # A range of --budget-gflops gives `lowest_gflops` as well.
    assert set(StudySettings.model_fields) - {"schema_version", "lowest_gflops"} <= options


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_python_examples_run_as_far_as_names_go() -> None:
    for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        compile(block, "README.md", "exec")
        for line in block.splitlines():
            if line.startswith(("import ", "from ")):
                exec(line, {})
