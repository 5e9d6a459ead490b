"""Shared fixtures: small, seeded, with weights that no test can pass by accident."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.browser import browse, browser  # noqa: F401 (fixtures)
from support.command_line import Ltmsearch, call
from support.finished import images, rejecting, run, whole  # noqa: F401 (fixtures)
from support.nets import EVERY_VARIANT, SMALL, VARIANTS
from support.postgres import postgres  # noqa: F401 (a fixture)
from support.threads import threads  # noqa: F401 (a fixture)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests report by `record_property("summary", …)`, such as the number of cases."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    for report in reports:
        for name, summary in getattr(report, "user_properties", ()):
            if name == "summary" and report.when == "call":
                terminalreporter.write_line(summary)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave variants of operators to the slow tests for most families: what differs between them is in all of them."""
    for item in items:
        given = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        backbone, variant = given.get("backbone"), (given.get("operator"), given.get("form"))
        if backbone in SMALL and backbone not in EVERY_VARIANT and "form" in given and variant not in VARIANTS:
            item.add_marker(pytest.mark.slow)


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


@pytest.fixture(autouse=True, scope="session")
def _durations_are_guessed() -> Iterator[None]:
    """One timed step of each kind instead of five before a study: no test but those of the announcement reads them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltmsearch.search.expected.STEPS", 1)
        yield


@pytest.fixture
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of a test's own."""
    folder = tmp_path / "user cache"
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name, *_, **__: folder / name)
    return folder


@pytest.fixture
def ltmsearch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ltmsearch:
    """Exit code, standard output and standard error of `ltmsearch ARGUMENTS`."""

    def command(*arguments: object) -> tuple[int, str, str]:
        return call(*map(str, arguments), monkeypatch=monkeypatch, capsys=capsys)

    return command
