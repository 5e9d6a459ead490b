"""Costs of schedules: multiply-adds by formula, checked against fvcore's traced count, and predicted latency."""

from ltmsearch.costs.budget import (
    Budget,
    SizedCosts,
    band_schedules,
    constraint_values,
    in_budget_range,
    sample_by_cost,
    spread_order,
    within_budgets,
)
from ltmsearch.costs.image_costs import ImageCosts, image_costs, image_macs
from ltmsearch.costs.latency import WHOLE_NET, LatencyModel, Timing, fit_latency
from ltmsearch.costs.macs import GIGA, CostModel, backbone_costs, cost_model
from ltmsearch.costs.tables import ChainedCosts, CostTable
from ltmsearch.costs.traced import traced_macs, traced_macs_by_module

__all__ = [
    "GIGA",
    "WHOLE_NET",
    "Budget",
    "ChainedCosts",
    "CostModel",
    "CostTable",
    "ImageCosts",
    "LatencyModel",
    "SizedCosts",
    "Timing",
    "backbone_costs",
    "band_schedules",
    "constraint_values",
    "cost_model",
    "fit_latency",
    "image_costs",
    "image_macs",
    "in_budget_range",
    "sample_by_cost",
    "spread_order",
    "traced_macs",
    "traced_macs_by_module",
    "within_budgets",
]
