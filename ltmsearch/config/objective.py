"""Cost axis of a front: multiply-adds or milliseconds."""

from dataclasses import dataclass
from typing import Literal

from ltmsearch.errors import check_choice

CostName = Literal["gflops", "latency_ms"]
"""`gflops`: 1e9 multiply-adds of one image. `latency_ms`: milliseconds of one batch."""

UNITS: dict[CostName, str] = {"gflops": "GFLOPs", "latency_ms": "ms"}


@dataclass(frozen=True, kw_only=True)
class CostAxis:
    """The cost that a front weighs against top-1."""

    name: CostName = "gflops"
    title: str = "GFLOPs per image (one multiply-add = one FLOP)"
    budget: float | None = None
    lowest: float | None = None
    """Lower end of a range of budgets; None if there is one budget."""

    def __post_init__(self) -> None:
        check_choice("the cost of a front", self.name, CostName)

    @property
    def unit(self) -> str:
        return UNITS[self.name]

    def text(self, cost: float) -> str:
        return f"{cost:.4f} GFLOPs" if self.name == "gflops" else f"{cost:.2f} ms"
