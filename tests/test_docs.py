"""The documentation cannot drift from the command line, the interface and the files that it names."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
from support.pages import PAGES, README, ROOT, blocks, shell_lines, without_code
from typer.main import get_command

import ltmsearch
from ltmsearch.cli.main import app

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
REFERENCE = ROOT / "docs/reference/commands.md"
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_in_the_readme_and_has_an_example(name: str) -> None:
    assert f"`ltmsearch {name}" in README.read_text(encoding="utf-8")
    assert f"ltmsearch {name}" in (COMMANDS[name].help or ""), "its help needs an example"


@by_page
def test_every_command_and_option_that_a_page_names_exists(page: Path) -> None:
    parameters = [parameter for command in COMMANDS.values() for parameter in command.params]
    known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    text = page.read_text(encoding="utf-8")
    ours = re.sub(
        r"torchrun .*? -m ltmsearch|python benchmarks/[^`]*|ray (?:start|get-auth-token)[^`\n]*|pytest .*|"
        r"mkdocs build.*|pip install.*?&&",
        "",
        text,
    )
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", ours)) - {"--help", "--version", "--install-completion"}
    assert named <= known, named - known
    assert set(re.findall(r"`ltmsearch ([a-z]+)", text)) <= set(COMMANDS)


@by_page
def test_every_command_line_of_a_page_is_one_that_the_program_takes(page: Path) -> None:
    for line in shell_lines(page):
        if "…" in line or "COMMAND" in line:
            continue
        _, name, *arguments = shlex.split(line)
        COMMANDS[name].make_context(name, arguments).close()  # raises on an unknown option, or a value of another type


def test_some_command_lines_are_looked_at() -> None:
    assert len([line for page in PAGES for line in shell_lines(page)]) > 20


def test_the_commands_reference_is_what_the_command_line_says() -> None:
    made = runpy.run_path(str(ROOT / "docs/make_reference.py"))["commands_page"]()
    assert REFERENCE.read_text(encoding="utf-8") == made, "run `python docs/make_reference.py`"


def test_every_command_and_option_is_in_the_commands_reference() -> None:
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", REFERENCE.read_text(), flags=re.DOTALL | re.MULTILINE))
    assert set(sections) == set(COMMANDS)
    for name, command in COMMANDS.items():
        for parameter in command.params:
            if parameter.param_type_name == "option":
                for option in (*parameter.opts, *parameter.secondary_opts):
                    assert f"`{option}`" in sections[name], f"{name} {option}"


def test_every_setting_is_an_option_of_run() -> None:
    from ltmsearch.config.settings import StudySettings

    options = {parameter.name for parameter in COMMANDS["run"].params}
    # A range of --budget-gflops gives `lowest_gflops` as well, the URL of --storage its password.
    assert set(StudySettings.model_fields) - {"schema_version", "lowest_gflops", "storage_password"} <= options


def test_every_column_and_key_of_a_runs_files_is_described() -> None:
    from ltmsearch.config.recipe import NET
    from ltmsearch.latency import LatencyProfile
    from ltmsearch.search.records import FRONT_COLUMNS, TRIALS_COLUMNS

    files = (ROOT / "docs/reference/files.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"`([^`]*)`", files))))
    assert {*FRONT_COLUMNS, *TRIALS_COLUMNS, *NET} <= named
    latency = (ROOT / "docs/howto/latency.md").read_text(encoding="utf-8")
    assert set(LatencyProfile.model_fields) <= set(re.findall(r"`([a-z_]+)`", latency))


def test_the_whole_interface_is_described() -> None:
    assert set(ltmsearch.__all__) == {
        "MergeSchedule", "SearchSpace", "Supernet", "StudySettings", "run_study", "load_recipe",
    }  # fmt: skip
    api = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
    for name in ltmsearch.__all__:
        assert f"::: {getattr(ltmsearch, name).__module__}.{name}\n" in api


@by_page
def test_what_a_page_links_to_exists(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", without_code(page)):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor and not anchor.startswith("ltmsearch."):  # those of docstrings are checked as the site is built
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {_anchor(heading) for heading in headings}, target


def _anchor(heading: str) -> str:
    """As GitHub and MkDocs name a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_every_page_is_in_the_sites_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert str(page.relative_to(ROOT / "docs")) in navigation


@by_page
def test_the_benchmarks_and_examples_that_a_page_names_exist(page: Path) -> None:
    for target in re.findall(
        r"(?:benchmarks|examples|studies|tests)/[\w/]+\.(?:py|ipynb|yaml)\b", page.read_text(encoding="utf-8")
    ):
        assert (ROOT / target).exists(), target


@by_page
def test_python_on_a_page_compiles(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            compile(block.code, str(page), "exec")


def test_no_page_is_without_its_blocks() -> None:
    """A fence that does not close would hide what follows from all tests here."""
    for page in PAGES:
        assert len(re.findall(r"^ *```", page.read_text(encoding="utf-8"), flags=re.MULTILINE)) == 2 * len(blocks(page))
