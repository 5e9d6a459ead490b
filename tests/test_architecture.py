"""The layout: imports point one way, and each library stays behind its fence."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ltmsearch"

FLOORS = [
    {"errors", "files", "grid", "observer", "shipped", "front", "columns", "families"},
    {"schedule", "yamlfile", "jsonfile", "tables", "ranks", "axis", "address", "lease", "defaults"},
    {"settings", "recipe", "records", "epochs", "times"},
    {"merging", "ib_loss", "importance"},
    {"space"},
    {"backbones"},
    {"costs"},
    {"runtime", "digits", "sources", "programs"},
    {"data", "supernet", "checkpoint", "evaluation", "trained", "state"},
    {"training", "inspection", "latency", "beginning", "traces"},
    {"trial", "storage", "samplers", "prior"},
    {"prepare", "soundness", "rescoring", "picture", "drawing", "findings", "course", "visuals"},
    {"report", "curves", "layers", "validation", "summary"},
    {"finetune", "page"},
    {"results", "history", "opening", "standing", "shared", "warming", "workers"},
    {"dashboard"},
    {"driver", "export", "progress", "visualize"},
    {"entry"},
    {"study"},
    {"cli"},
    {"__main__"},
]
"""From the ground up: a room may import from its own floor's rooms and from those below, never from above."""

FENCES: dict[str, set[str]] = {
    "optuna": {
        "soundness",
        "entry",
        "history",
        "standing",
        "shared",
        "trial",
        "driver",
        "storage",
        "samplers",
        "dashboard",
    },
    "optuna_dashboard": {"dashboard"},
    "sqlalchemy": {"address", "storage"},
    "plotly": {"report", "curves", "layers", "drawing", "page"},
    "typer": {"cli"},
    "fvcore": {"costs"},
    "jinja2": {"page"},
    "timm.models": {"backbones"},
    "sklearn": {"costs", "digits", "ib_loss"},
    "ray": {"workers"},
    "scipy": {"importance", "course"},
    "PIL": {"data", "digits", "sources", "visuals", "dashboard"},
    "safetensors": {"checkpoint", "state", "trained"},
}
"""Library → the only rooms that may import it."""


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, as a dotted name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            yield node.module or ""


def test_every_room_has_a_floor() -> None:
    rooms = {room(path) for path in modules()}
    assert rooms == set().union(*FLOORS)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    floor_of = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "ltmsearch" or len(parts) < 2:
            continue
        assert floor_of[parts[1]] <= floor_of[room(path)], f"{path.name} imports {name} from above"
        if parts[1] != room(path):
            same = floor_of[parts[1]] == floor_of[room(path)]
            assert not same or not _imports_back(parts[1], room(path)), f"{path.name} and {name} import each other"


def _imports_back(source: str, target: str) -> bool:
    return any(f"ltmsearch.{target}" == name for path in modules() if room(path) == source for name in imported(path))


@pytest.mark.parametrize("library", sorted(FENCES))
def test_libraries_stay_behind_their_fence(library: str) -> None:
    users = {room(p) for p in modules() if any(n == library or n.startswith(f"{library}.") for n in imported(p))}
    assert users <= FENCES[library], f"{library} is used in {sorted(users - FENCES[library])}"
    assert users, f"nothing uses {library}: the fence is out of date"


def test_no_room_for_odds_and_ends() -> None:
    assert not {path.stem for path in modules()} & {"utils", "common", "base", "helpers", "misc"}


def test_no_file_outgrows_its_walls() -> None:
    long = {str(p.relative_to(PACKAGE)): n for p in modules() if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}


def test_nothing_is_unpickled_and_yaml_is_read_safely() -> None:
    for path in modules():
        text = path.read_text(encoding="utf-8")
        assert "pickle" not in {name.split(".")[0] for name in imported(path)}
        assert "yaml.load(" not in text
        assert "torch.load(" not in text
        assert "eval(" not in text.replace(".eval(", "")
