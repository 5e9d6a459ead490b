"""Objectives of a search: a measure of what merging loses, a cost, and on request the tokens that leave the device."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ltmsearch.errors import check_choice
from ltmsearch.schedules.schedule import THRESHOLDS

CostName = Literal["gflops", "gflops_quantile", "latency_ms", "tokens_sent"]
"""`gflops`: 1e9 multiply-adds of one image, the mean where images differ. `gflops_quantile`: those that a share of the
images stay within. `latency_ms`: milliseconds of one batch. `tokens_sent`: tokens of one image that leave the device
after a split layer."""

Measure = Literal["kl", "loss"]
"""What is minimised beside the cost, in nats. `kl`: Kullback-Leibler divergence of a schedule's predictions from the
plain network's. `loss`: cross-entropy with the labels."""
MEASURES: dict[Measure, str] = {"kl": "KL divergence from the plain network", "loss": "cross-entropy"}
"""Names of the measures, for titles."""

UNITS: dict[CostName, str] = {
    "gflops": "GFLOPs",
    "gflops_quantile": "GFLOPs",
    "latency_ms": "ms",
    "tokens_sent": "tokens sent",
}


def tokens_text(number: float) -> str:
    """A number of tokens, to a tenth where it is a mean over images."""
    return f"{round(number, 1):g}"


def check_costs(what: str, costs: Sequence[CostName]) -> None:
    """Raise an InputError unless all costs of something, such as "a front", are known."""
    for cost in costs:
        check_choice(f"the cost of {what}", cost, CostName)


@dataclass(frozen=True, kw_only=True)
class CostAxis:
    """The cost that a front weighs against a measure of what merging loses, alone or with a second one."""

    name: CostName = "gflops"
    measure: Measure = "loss"
    """The measure, which ranks the front."""
    title: str = "GFLOPs per image (one multiply-add = one FLOP)"
    budget: float | None = None
    lowest: float | None = None
    """Lower end of a range of budgets; None if there is one budget."""
    second: "CostAxis | None" = None
    """The second cost of a front with three objectives."""
    one_size: bool = False
    """Whether the front has networks of the study's own image size only: smaller ones are baselines beside it."""

    def __post_init__(self) -> None:
        check_choice("the cost of a front", self.name, CostName)
        check_choice("the measure of a front", self.measure, Measure)

    @property
    def unit(self) -> str:
        return UNITS[self.name]

    @property
    def axes(self) -> "tuple[CostAxis, ...]":
        """This axis, and the second one if there is one."""
        return (self,) if self.second is None else (self, self.second)

    @property
    def costs(self) -> tuple[CostName, ...]:
        """Names of all costs of the front, this one first."""
        return tuple(axis.name for axis in self.axes)

    @property
    def swapped(self) -> "CostAxis":
        """The second axis as the first, and this one as its second.

        Raises:
            ValueError: If there is no second axis.
        """
        if self.second is None:
            raise ValueError(f"a second cost is needed, but there is only `{self.name}`.")
        return replace(self.second, second=replace(self, second=None))

    def text(self, cost: float) -> str:
        return f"{self.number(cost)} {self.unit}"

    def number(self, cost: float) -> str:
        """A cost without its unit."""
        if self.name == "tokens_sent":
            return tokens_text(cost)
        return f"{cost:.2f}" if self.name == "latency_ms" else f"{cost:.4f}"


def measure_of(settings: Any) -> Measure:
    """The measure that a study minimises, from its settings: by default KL divergence where weights are given."""
    if settings.objective != "auto":
        measure: Measure = settings.objective
        return measure
    return "kl" if settings.pretrained or settings.checkpoint or settings.resume_from else "loss"


def cost_axis(settings: Any) -> CostAxis:
    """The axes of a study, from its settings: latency if it has a budget, else multiply-adds."""
    s, second = settings, None
    measure = measure_of(s)
    one_size = s.search_img_size is None
    if s.split_layer is not None:
        counted = f"mean per image at {s.img_size} px, class and register tokens included"
        second = CostAxis(name="tokens_sent", title=f"tokens sent after {s.split_layer} ({counted})")
    if s.budget_ms is None:
        name: CostName = "gflops" if s.budget_quantile is None else "gflops_quantile"
        share, means = "", ", a mean over images" * (s.operator in THRESHOLDS)
        if s.budget_quantile is not None:
            share, means = f" that {s.budget_quantile:.4g} of the images stay within", ""
        title = f"GFLOPs per image at {s.img_size} px{share} (one multiply-add = one FLOP{means})"
        limits = {"budget": s.budget_gflops, "lowest": s.lowest_gflops}
        return CostAxis(name=name, measure=measure, title=title, second=second, one_size=one_size, **limits)
    batch, where = "batch", s.latency_profile
    if where is None:
        batch = f"batch of {s.latency_batch}"
        where = f"{s.latency_device or s.device}, {s.latency_runtime}, {s.latency_dtype}"
    title = f"ms per {batch} at {s.img_size} px, predicted ({where})"
    return CostAxis(name="latency_ms", measure=measure, title=title, budget=s.budget_ms, second=second)
