"""Operators in one form each, at equal cost."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ltmsearch.costs import CostModel
from ltmsearch.merging import get_operator
from ltmsearch.schedules.schedule import Form, MergeSchedule

RATIOS = np.arange(0.1, 1.0, 0.0005)


class OperatorNet(NamedTuple):
    """A network that merges by an operator in one form."""

    operator: str
    form: Form

    def __str__(self) -> str:
        return self.operator if len(get_operator(self.operator).forms) == 1 else f"{self.operator} {self.form}"

    def schedule(self, costs: CostModel, share: float) -> MergeSchedule:
        """One keep ratio in all layers: the costliest within a share of the plain network's multiply-adds.

        If none is, the cheapest.
        """
        tried = [MergeSchedule.uniform(costs.layers, float(r), self.operator, self.form) for r in RATIOS]
        within = [each for each in tried if costs.macs(each) <= share * costs.base]
        return max(within, key=costs.macs) if within else min(tried, key=costs.macs)


def operator_nets(names: Sequence[str]) -> list[OperatorNet]:
    """From `operator` (in every form) or `operator:form`, such as `ltm:matched`."""
    split = [name.partition(":") for name in names]
    return [OperatorNet(o, f) for o, _, wanted in split for f in get_operator(o).forms if wanted in ("", f)]
