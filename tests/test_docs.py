"""The documentation matches the command line, the public interface and the files that it names."""

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
from support.pages import DOCS, PAGES, README, ROOT, SITE_PAGES, blocks, shell_lines, without_code

import ltmsearch
from ltmsearch.cli.commands import ENTRIES, load_command

COMMANDS = {name: load_command(name) for name in ENTRIES}
OTHER_PROGRAMS = re.compile(
    r"torchrun .*? -m ltmsearch|python (?:benchmarks|examples)/[^`]*|ray (?:start|get-auth-token)[^`\n]*|pytest .*|"
    r"ruff .*|mkdocs build.*|pip install.*?&&"
)
"""Commands whose options are not those of ltmsearch."""
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.fixture(scope="module")
def generated() -> dict[str, Any]:
    """Functions of the script that writes the generated pages."""
    return runpy.run_path(str(DOCS / "make_reference.py"))


def test_readme_has_at_most_900_words() -> None:
    text = re.sub(r"\]\([^)]*\)|<?https?://\S+", "", without_code(README))
    assert len(text.split()) <= 900


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_listed_and_has_an_example(name: str) -> None:
    assert f"`ltmsearch {name}" in (DOCS / "index.md").read_text(encoding="utf-8")
    assert f"ltmsearch {name}" in (COMMANDS[name].help or "")


@by_page
def test_commands_and_options_of_a_page_exist(page: Path) -> None:
    parameters = [parameter for command in COMMANDS.values() for parameter in command.params]
    known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", OTHER_PROGRAMS.sub("", text)))
    assert named <= known | {"--help", "--version", "--install-completion"}
    assert set(re.findall(r"`ltmsearch ([a-z]+)", text)) <= set(COMMANDS)


def test_command_lines_of_all_pages_parse() -> None:
    lines = [line for page in PAGES for line in shell_lines(page) if "…" not in line and "COMMAND" not in line]
    assert len(lines) > 20
    for line in lines:
        _, name, *arguments = shlex.split(line)
        COMMANDS[name].make_context(name, arguments).close()  # raises for unknown options and values of another type


def test_generated_pages_are_up_to_date(generated: dict[str, Any]) -> None:
    for page, write in (("COMMANDS", "commands_page"), ("ARCHITECTURE", "architecture_page")):
        assert generated[page].read_text(encoding="utf-8") == generated[write](), "run `python docs/make_reference.py`"


def test_commands_reference_has_every_option(generated: dict[str, Any]) -> None:
    page = generated["COMMANDS"].read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, flags=re.DOTALL | re.MULTILINE))
    assert set(sections) == set(COMMANDS)
    for name, command in COMMANDS.items():
        options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
        for option in (name for parameter in options for name in (*parameter.opts, *parameter.secondary_opts)):
            assert f"`{option}`" in sections[name]


def test_every_setting_is_an_option_of_run() -> None:
    from ltmsearch.config.settings import StudySettings

    options = {parameter.name for parameter in COMMANDS["run"].params}
    # `lowest_gflops` comes from a range of --budget-gflops, the password from the URL of --storage.
    assert set(StudySettings.model_fields) - {"schema_version", "lowest_gflops", "storage_password"} <= options


def test_every_column_and_key_is_described() -> None:
    from ltmsearch.config.recipe import KWARGS, NET
    from ltmsearch.latency import LatencyProfile
    from ltmsearch.search.records import FRONT_COLUMNS, TRIALS_COLUMNS

    for page, names in (
        ("reference/files.md", {*FRONT_COLUMNS, *TRIALS_COLUMNS, KWARGS, *NET} - {"timm_kwargs"}),
        ("howto/latency.md", set(LatencyProfile.model_fields)),
    ):
        code = " ".join(re.findall(r"`([^`]*)`", (DOCS / page).read_text(encoding="utf-8")))
        assert names <= set(re.findall(r"[a-z_0-9]+", code))


def test_public_interface_is_described() -> None:
    assert set(ltmsearch.__all__) == {
        "MergeSchedule", "SearchSpace", "Supernet", "StudySettings", "run_study", "load_recipe",
    }  # fmt: skip
    api = (DOCS / "reference/api.md").read_text(encoding="utf-8")
    for name in ltmsearch.__all__:
        assert f"::: {getattr(ltmsearch, name).__module__}.{name}\n" in api


@by_page
def test_links_and_files_of_a_page_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", without_code(page)):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor and not anchor.startswith("ltmsearch."):  # anchors of docstrings are checked by `mkdocs build`
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {_anchor(heading) for heading in headings}, target
    for path in re.findall(
        r"(?:benchmarks|examples|studies|tests|ltmsearch)/[\w/]+\.(?:py|ipynb|yaml)\b", page.read_text()
    ):
        assert (ROOT / path).exists(), path


def _anchor(heading: str) -> str:
    """Anchor of a heading on GitHub and in MkDocs."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in SITE_PAGES:
        assert str(page.relative_to(DOCS)) in navigation


@by_page
def test_code_blocks_close_and_python_compiles(page: Path) -> None:
    found = blocks(page)
    fences = re.findall(r"^ *```", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(fences) == 2 * len(found)  # an open fence would hide the rest of the page from these tests
    for block in found:
        if block.language == "python":
            compile(block.code, str(page), "exec")
