"""The layout: imports point one way, and each library is used by few packages."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ltmsearch"

LAYERS = [
    "errors", "callbacks", "io", "data", "schedules", "config", "programs", "merging", "models", "costs", "engine",
    "latency", "search", "training", "reporting", "export", "study", "cli", "__main__",
]  # fmt: skip
"""Packages and modules from the lowest layer to the highest; each imports only from those before it."""

ALLOWED: dict[str, set[str]] = {
    "optuna": {"search", "reporting"},
    "optuna_dashboard": {"reporting"},
    "sqlalchemy": {"config", "search"},
    "plotly": {"io", "training", "reporting"},
    "typer": {"cli"},
    "fvcore": {"costs"},
    "jinja2": {"reporting"},
    "timm.models": {"models"},
    "sklearn": {"costs", "data", "engine", "search"},
    "ray": {"search"},
    "scipy": {"reporting"},
    "PIL": {"data", "reporting"},
    "safetensors": {"io", "models", "search"},
}
"""Library → the only packages that may import it."""


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def package(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, as a dotted name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            yield node.module or ""


def test_every_package_has_a_layer() -> None:
    assert {package(path) for path in modules()} == set(LAYERS)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "ltmsearch" and len(parts) > 1:
            assert LAYERS.index(parts[1]) <= LAYERS.index(package(path)), f"{path.name} imports {name} from above"


def test_modules_never_import_each_other_in_a_circle() -> None:
    dotted = {".".join(("ltmsearch", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in modules()}
    graph = {name: {n for n in imported(path) if n in dotted} for name, path in dotted.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("library", sorted(ALLOWED))
def test_libraries_stay_in_their_packages(library: str) -> None:
    users = {package(p) for p in modules() if any(n == library or n.startswith(f"{library}.") for n in imported(p))}
    assert users <= ALLOWED[library], f"{library} is used in {sorted(users - ALLOWED[library])}"
    assert users, f"nothing uses {library}: ALLOWED is out of date"


def test_no_module_is_named_utils() -> None:
    assert not {path.stem for path in modules()} & {"utils", "common", "base", "helpers", "misc"}


def test_no_function_exceeds_60_lines() -> None:
    functions = {
        f"{path.relative_to(PACKAGE)}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: lines for name, lines in functions.items() if lines > 60} == {}


def test_no_file_exceeds_400_lines() -> None:
    long = {str(p.relative_to(PACKAGE)): n for p in modules() if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}
