"""ltmsearch: which layers of a vision transformer should merge tokens, and how much, under a compute budget.

Importing it makes `ltm_<backbone>` known to timm as soon as timm is imported; torch, timm and Optuna are not imported
before they are needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import wrapt

__version__ = "0.2.0"

if TYPE_CHECKING:
    from ltmsearch.config.recipe import load_recipe
    from ltmsearch.config.settings import StudySettings
    from ltmsearch.models.supernet import Supernet
    from ltmsearch.schedules.schedule import MergeSchedule
    from ltmsearch.schedules.space import SearchSpace
    from ltmsearch.study import run_study

__all__ = ["MergeSchedule", "SearchSpace", "StudySettings", "Supernet", "load_recipe", "run_study"]

_MODULES = {
    "MergeSchedule": "schedules.schedule",
    "SearchSpace": "schedules.space",
    "StudySettings": "config.settings",
    "Supernet": "models.supernet",
    "load_recipe": "config.recipe",
    "run_study": "study",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"ltmsearch.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'ltmsearch' has no attribute {name!r}")


@wrapt.when_imported("timm")
def _register(_timm: object) -> None:
    import_module("ltmsearch.models")  # registers when it is imported, which may be going on right now
