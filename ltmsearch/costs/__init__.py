"""Costs: exact multiply-adds by formula, and fvcore's traced count as the ground truth."""

from ltmsearch.costs.cover import covering_schedules
from ltmsearch.costs.macs import GIGA, CostModel, CostTable, backbone_costs, cost_model
from ltmsearch.costs.traced import traced_macs, traced_macs_by_module

__all__ = [
    "GIGA",
    "CostModel",
    "CostTable",
    "backbone_costs",
    "cost_model",
    "covering_schedules",
    "traced_macs",
    "traced_macs_by_module",
]
