"""Fixtures of the search's tests."""

import pytest
from support.sizes import TINY

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import StudySettings
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.setup import prepare
from ltmsearch.search.trial import Evaluator


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """No browser for a PNG, and no wait for drivers that do not exist."""
    monkeypatch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)
    monkeypatch.setattr("ltmsearch.search.storage.driver_attribute.SETTLING_SECONDS", 0.0)


@pytest.fixture(scope="session")
def evaluator() -> Evaluator:
    return prepare(StudySettings.make("test", **TINY, proxy_lr=0.01), Callbacks()).evaluator


@pytest.fixture
def half(evaluator: Evaluator) -> MergeSchedule:
    """Half of the tokens in the first layers."""
    return MergeSchedule(keep_ratios=dict.fromkeys(evaluator.supernet.layers[:5], 0.5))
