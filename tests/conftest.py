"""Shared fixtures: small, seeded, with weights that no test can pass by accident."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import browse, browser  # noqa: F401 (fixtures)
from postgres import postgres  # noqa: F401 (a fixture)
from torch import nn

from ltmsearch.backbones import get_adapter
from ltmsearch.costs import CostModel, backbone_costs
from ltmsearch.costs.latency import behind_features, layer_features
from ltmsearch.grid import target_grid
from ltmsearch.latency import LatencyProfile, LatencyTarget, Reading, profile_space
from ltmsearch.observer import Observer
from ltmsearch.space import SearchSpace, SpaceFile

TINY: dict[str, Any] = {
    "backbone": "mobilevit_xxs", "budget_gflops": 0.27, "trials": 6, "batch_size": 4, "base_steps": 2,
    "base_img_size": 48, "sandwich_steps": 1, "proxy_img_size": 64, "proxy_steps": 1, "calibration_images": 8,
    "val_images": 16, "rescore_images": 24, "rescore_candidates": 3, "device": "cpu", "precision": "fp32",
}  # fmt: skip
"""Settings of a study that takes seconds."""


SMALL: dict[str, dict[str, Any]] = {
    "mobilevit_xxs": {},
    "efficientvit_b0": {},
    "vit_tiny_patch16_224": {"depth": 5, "embed_dim": 96, "num_heads": 3, "reg_tokens": 2, "global_pool": "avg"},
    "swin_tiny_patch4_window7_224": {
        "embed_dim": 32,
        "depths": (2, 2, 2, 2),
        "num_heads": (1, 2, 2, 4),
        "drop_path_rate": 0.0,  # a dropped path has no gradient
    },
}
"""One backbone per family, made small by timm's own arguments: the others differ in widths and depths only."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests told by `record_property("told", …)`, such as how many cases they went through."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    for report in reports:
        for name, told in getattr(report, "user_properties", ()):
            if name == "told" and report.when == "call":
                terminalreporter.write_line(told)


# Here and not in a fixture: the last digits of a sum depend on the number of threads, also in module-wide fixtures.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, in whatever order and process it runs."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _the_users_cache_is_left_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Latency profiles are kept below the user's cache folder: no test reads or writes those of a person."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("platformdirs.user_cache_path", lambda *_, **__: folder)
        yield


@pytest.fixture
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of a test's own."""
    folder = tmp_path / "user cache"
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name, *_, **__: folder / name)
    return folder


FAR = LatencyTarget(
    device="cpu", hardware="a machine far away", threads=4, runtime="torch", dtype="fp32",
    memory_format="channels_last", batch_size=1, img_size=224, num_classes=10, versions={"torch": "0.1"},
)  # fmt: skip
"""A target that no machine is."""


def reading(ms: float, error: float = 0.01) -> Reading:
    """A stable reading."""
    return Reading(ms=ms, least_ms=ms, iqr_ms=0.0, error=error, visits=6, runs=18, stable=True)


@cache
def costs_of(backbone: str, img_size: int, operator: str = "ltm") -> CostModel:
    """Of a net of ten classes."""
    return backbone_costs(backbone, img_size, operator, num_classes=10)


def whole_space(costs: CostModel, backbone: str, space: str | None = None) -> SearchSpace:
    """All that a family's file, or another, offers for a latency profile."""
    return profile_space(SpaceFile.load(space, family=get_adapter(backbone).family), costs)


def feature_names(costs: CostModel, space: SearchSpace) -> list[str]:
    """Every name that a schedule of a space can need a weight for."""
    names: dict[str, None] = {}
    options = iter(space.choices)
    for chain in costs.chains:
        grids = {chain.grid}
        for layer in chain.layers:
            choices = next(options)
            for grid in sorted(grids):
                for choice in choices:
                    names |= dict.fromkeys(layer_features(chain, layer, grid, choice, costs.operator))
            grids = {target_grid(grid, choice.keep_ratio) for grid in grids for choice in choices}
        for grid in sorted(grids):
            names |= dict.fromkeys(behind_features(chain, grid))
    return list(names)


def suffix(name: str) -> str:
    """A feature's name without the layer that it is of: `hard 0.5`, `work after`, …"""
    return name.partition("×")[2].partition(" ")[2] if "×" in name else name


def hand_made_profile(
    truth: Callable[[str], float], *, base_ms: float, target: LatencyTarget = FAR, space: str | None = None,
    backbone: str = "mobilevit_xxs",
) -> LatencyProfile:  # fmt: skip
    """A profile of weights that were not fitted.

    Args:
        truth: Milliseconds by a feature's name without its layer.
        base_ms: Of the plain net.
        target: Whose it is.
        space: Search-space file; None: the family's.
        backbone: timm name.
    """
    costs = costs_of(backbone, target.img_size)
    choices = whole_space(costs, backbone, space)
    weights: Mapping[str, float] = {name: truth(suffix(name)) for name in feature_names(costs, choices)}
    return LatencyProfile(
        backbone=backbone, operator="ltm", space=choices.digest(), target=target, plain=reading(base_ms), subnets=[],
        load=0.5, seconds=1.0, weights=dict(weights), check={"error": 0.02, "noise": 0.01, "subnets": 0},
    )  # fmt: skip


class Interrupt(Observer):
    """Presses Ctrl-C at the n-th sign of progress."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, done: int, status: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Move every weight and statistic off its start: norms of all ones would let a wrong slice pass."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model
