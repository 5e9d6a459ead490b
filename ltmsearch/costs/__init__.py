"""Costs: exact multiply-adds by formula, fvcore's traced count as the ground truth, and latency from measured nets."""

from ltmsearch.costs.budget import Budget, misses, within, worth_trying
from ltmsearch.costs.latency import WHOLE, LatencyModel, Timing, fit_latency
from ltmsearch.costs.macs import GIGA, CostModel, backbone_costs, cost_model
from ltmsearch.costs.sampling import covering_schedules
from ltmsearch.costs.tables import ChainedCosts, CostTable
from ltmsearch.costs.traced import traced_macs, traced_macs_by_module

__all__ = [
    "GIGA",
    "WHOLE",
    "Budget",
    "ChainedCosts",
    "CostModel",
    "CostTable",
    "LatencyModel",
    "Timing",
    "backbone_costs",
    "cost_model",
    "covering_schedules",
    "fit_latency",
    "misses",
    "traced_macs",
    "traced_macs_by_module",
    "within",
    "worth_trying",
]
