"""ltmsearch: which layers of a vision transformer should merge tokens, and how much, under a compute budget.

Importing it makes `ltm_<backbone>` known to timm as soon as timm is imported; torch, timm and Optuna are not imported
before they are needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import wrapt

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ltmsearch.recipe import load_recipe
    from ltmsearch.schedule import MergeSchedule
    from ltmsearch.settings import StudySettings
    from ltmsearch.space import SearchSpace
    from ltmsearch.study import run_study
    from ltmsearch.supernet import Supernet

__all__ = ["MergeSchedule", "SearchSpace", "StudySettings", "Supernet", "load_recipe", "run_study"]

_ROOMS = {
    "MergeSchedule": "schedule",
    "SearchSpace": "space",
    "StudySettings": "settings",
    "Supernet": "supernet",
    "load_recipe": "recipe",
    "run_study": "study",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f"ltmsearch.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'ltmsearch' has no attribute {name!r}")


@wrapt.when_imported("timm")
def _register(_timm: object) -> None:
    import_module("ltmsearch.backbones")  # registers when it is imported, which may be going on right now
