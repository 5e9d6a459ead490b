"""Studies with a latency budget: constraints, reports, and the final measurement."""

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from rich.console import Console
from support.command_line import Interrupt, Ltmsearch, Notes, tiny_options
from support.profiles import FAR, costs_of, hand_made_profile, measurement
from support.sizes import TINY
from support.spaces import SOFT_AND_HARD

from ltmsearch import StudySettings, load_recipe, run_study
from ltmsearch.callbacks import Callbacks
from ltmsearch.config.objective import CostAxis
from ltmsearch.costs import LatencyModel
from ltmsearch.errors import InputError
from ltmsearch.latency import LatencyProfile, LatencyTarget, Measurement
from ltmsearch.latency.study import DRIFT
from ltmsearch.reporting.pareto_plot import front_figure
from ltmsearch.reporting.terminal import print_front
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.records import TrialRecord, select_front
from ltmsearch.search.run import Run
from ltmsearch.search.trial import Evaluator

XXS = "mobilevit_xxs"
BASE_MS, BUDGET_MS, BUDGET_GFLOPS = 200.0, 138.0, 0.232
LATENCY = CostAxis(name="latency_ms")
SAVED = {0.7: 6.0, 0.5: 8.0, 0.35: 10.0, 0.25: 12.0}


def ms(name: str) -> float:
    """Hard merges save what `SAVED` says, wherever they are; soft ones cost 50 ms."""
    form, _, rest = name.partition(" ")
    if form in ("hard", "soft") and rest[0].isdigit():
        return -SAVED[float(rest)] if form == "hard" else 50.0
    return {"tokens before": 0.01}.get(name, 0.0)


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)


def tiny(folder: Path, profile: Path, **changes: Any) -> StudySettings:
    values = {
        **TINY, "trials": 7, "sampler": "random", "budget_gflops": BUDGET_GFLOPS, "budget_ms": BUDGET_MS,
        "latency_profile": str(profile), "out": str(folder / "run"), "space": SOFT_AND_HARD,
    }  # fmt: skip
    return StudySettings.make("test", **{**values, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """The folder of a finished study under both budgets, the profile it was given, and what it told."""
    folder = tmp_path_factory.mktemp("latency")
    profile = hand_made_profile(ms, base_ms=BASE_MS, space=SOFT_AND_HARD).save(folder / "far.json")
    notes = Notes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)
        patch.setattr("ltmsearch.latency.study.measure", _must_not_be_called)
        run_study(tiny(folder, profile), notes)
    return folder, profile, notes.lines


def _must_not_be_called(*_: object, **__: object) -> Any:
    raise AssertionError("nothing was to be timed")


def model() -> LatencyModel:
    return hand_made_profile(ms, base_ms=BASE_MS, space=SOFT_AND_HARD).model(costs_of(XXS, 224))


def stored(run: Path) -> optuna.Study:
    return optuna.load_study(study_name=None, storage=f"sqlite:///{run}/study.db")


class TestFinished:
    def test_trials_store_both_excesses_over_budget(self, finished: tuple[Path, Path, list[str]]) -> None:
        run = finished[0] / "run"
        study, records = stored(run), {r.trial: r for r in Run.open(run).trials}
        assert study.metric_names == ["cross-entropy (nats)", "ms"]
        assert len(study.trials) == len(records) >= 8
        for trial in study.trials:
            record = records[trial.number]
            over_ms, over_gflops = model().latency_ms(record.schedule) - BUDGET_MS, record.gflops - BUDGET_GFLOPS
            excesses = {name: excess for name, excess in trial.constraints.items() if name.endswith("over budget")}
            assert excesses == {
                "ms over budget": pytest.approx(over_ms), "GFLOPs over budget": pytest.approx(over_gflops),
            }  # fmt: skip
            assert trial.system_attrs["constraints"] == pytest.approx([over_ms, over_gflops])
            assert record.latency_ms == pytest.approx(over_ms + BUDGET_MS)
            assert record.feasible == (over_ms <= 0 and over_gflops <= 0)
            if trial.values:
                assert trial.values[1] == pytest.approx(record.latency_ms)
        assert {t.number for t in study.best_trials} <= {r.trial for r in records.values() if r.feasible}

    def test_trials_over_budget_are_not_trained(self, finished: tuple[Path, Path, list[str]]) -> None:
        records = Run.open(finished[0] / "run").trials
        scored = [r for r in records if r.state == "scored" and r.label != "plain"]
        assert len(scored) == 7
        assert all(r.feasible for r in scored)
        rejected = [r for r in records if r.state == "over budget"]
        assert any(r.cost("latency_ms") > BUDGET_MS for r in rejected)
        assert any(r.cost("latency_ms") <= BUDGET_MS and r.gflops > BUDGET_GFLOPS for r in rejected), "fast, but dear"
        assert all(r.top1 is None and not r.feasible for r in rejected)

    def test_space_excludes_choices_that_save_no_time(self, finished: tuple[Path, Path, list[str]]) -> None:
        records = Run.open(finished[0] / "run").trials
        merging = [r for r in records if r.schedule.merging_layers]
        assert len(merging) >= 7
        for record in merging:
            assert set(record.schedule.forms) == set(record.schedule.merging_layers)
            assert set(record.schedule.forms.values()) == {"hard"}, "soft merges save multiply-adds and no time"

    def test_front_uses_latency(self, finished: tuple[Path, Path, list[str]]) -> None:
        run = finished[0] / "run"
        front = pd.read_csv(run / "front.csv")
        assert len(front) >= 1
        assert front.trial.tolist() == [r.trial for r in select_front(Run.open(run).trials, LATENCY)]
        assert (front.latency_ms <= BUDGET_MS).all()
        assert front.latency_ms.is_monotonic_decreasing
        assert front.rescored_loss.is_monotonic_increasing
        assert front.latency_measured_ms.isna().all()
        assert {int(path.stem) for path in (run / "recipes").glob("*.yaml")} == set(front.trial)
        for _, row in front.iterrows():
            provenance = load_recipe(run / f"recipes/{row.trial}.yaml").provenance
            assert provenance["latency_ms"] == row.latency_ms
            assert (provenance["budget_ms"], provenance["budget_gflops"]) == (BUDGET_MS, BUDGET_GFLOPS)
            assert provenance["latency_measured_ms"] is None
        assert "ms per batch at 224 px, predicted" in (run / "front.html").read_text()

    def test_foreign_profile_is_reported_and_not_measured(self, finished: tuple[Path, Path, list[str]]) -> None:
        folder, profile, notes = finished
        text = "\n".join(notes)
        assert f"latency: {FAR}; plain network {BASE_MS:.2f} ms" in text
        assert "this machine differs from the profile's, so the final front is not timed: " in text
        assert f"ms, budget {BUDGET_MS:g}" in text
        assert "timed end to end" not in text
        assert LatencyProfile.load_file(folder / "run/latency.json") == LatencyProfile.load_file(profile)
        assert {r.latency_measured_ms for r in Run.open(folder / "run").trials} == {None}


@pytest.mark.slow
def test_screening_proposes_within_both_budgets(finished: tuple[Path, Path, list[str]], tmp_path: Path) -> None:
    result = run_study(tiny(tmp_path, finished[1], sampler="auto"))
    searched = [record for record in result.trials if record.kind == "searched"]
    assert len(searched) >= 2
    assert all(record.state == "scored" and record.feasible for record in searched)
    assert all(record.cost("latency_ms") <= BUDGET_MS and record.gflops <= BUDGET_GFLOPS for record in searched)


@pytest.mark.parametrize("fate", [pytest.param("gone", marks=pytest.mark.slow), "changed"])
@pytest.mark.slow
def test_resumed_study_keeps_its_profile(finished: tuple[Path, Path, list[str]], tmp_path: Path, fate: str) -> None:
    given = tmp_path / "given.json"
    shutil.copy(finished[1], given)
    with pytest.raises(KeyboardInterrupt):
        run_study(tiny(tmp_path, given), Interrupt(8))
    if fate == "gone":
        given.unlink()
    else:
        hand_made_profile(lambda name: 2 * ms(name), base_ms=BASE_MS, space=SOFT_AND_HARD).save(given)
    run_study(tiny(tmp_path, given))
    mine, theirs = (
        pd.read_csv(folder / "run/trials.csv").drop(columns="seconds") for folder in (tmp_path, finished[0])
    )
    pd.testing.assert_frame_equal(mine, theirs)
    assert (tmp_path / "run/front.csv").read_bytes() == (finished[0] / "run/front.csv").read_bytes()
    proposals = [[trial.params for trial in stored(folder / "run").trials] for folder in (tmp_path, finished[0])]
    assert proposals[0] == proposals[1]


# -- the closing measurement ------------------------------------------------------------------------------------------


@pytest.fixture
def here(finished: tuple[Path, Path, list[str]], tmp_path: Path) -> tuple[Path, LatencyTarget]:
    """A copy of the finished study, whose profile is this machine's."""
    shutil.copytree(finished[0] / "run", tmp_path / "run")
    target = LatencyTarget.local(device="cpu", num_classes=10)
    hand_made_profile(ms, base_ms=BASE_MS, target=target, space=SOFT_AND_HARD).save(tmp_path / "run/latency.json")
    return tmp_path, target


def measured_as(
    monkeypatch: pytest.MonkeyPatch, readings: Callable[[MergeSchedule], Measurement]
) -> list[tuple[tuple[Any, ...], float | None]]:
    """Let the clock say what we like; what it was asked for."""
    asked: list[tuple[tuple[Any, ...], float | None]] = []

    def measure(
        backbone: str,
        operator: str,
        target: LatencyTarget,
        schedules: Sequence[MergeSchedule],
        callbacks: Callbacks,
        *,
        plain_ms: float | None = None,
    ) -> dict[MergeSchedule, Measurement]:
        asked.append(((backbone, operator, target, *schedules), plain_ms))
        plain = MergeSchedule.uniform(model().layers, 1.0, operator)
        return {schedule: readings(schedule) for schedule in (*schedules, plain)}

    monkeypatch.setattr("ltmsearch.latency.study.measure", measure)
    monkeypatch.setattr(Evaluator, "evaluate", _must_not_be_called)
    return asked


def test_front_is_measured_and_marked_over_budget(
    here: tuple[Path, LatencyTarget], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, target = here
    front = select_front(Run.open(folder / "run").trials, LATENCY)
    slow = front[0].schedule

    def clock(schedule: MergeSchedule) -> Measurement:
        """Over the budget for the slowest of the front, and 5 % less than predicted for all others."""
        return measurement(1.1 * BUDGET_MS if schedule == slow else 0.95 * model().latency_ms(schedule), error=0.02)

    asked = measured_as(monkeypatch, clock)
    notes = Notes()
    settings = tiny(folder, stored_profile(folder))
    result = run_study(settings, notes)
    (((backbone, operator, seen_target, *schedules), plain_ms),) = asked
    assert (backbone, operator, seen_target, plain_ms) == (XXS, "ltm", target, BASE_MS)
    plain = MergeSchedule.uniform(model().layers, 1.0)
    assert set(schedules) == {*(record.schedule for record in front), plain}
    timed = {r.trial: r for r in result.trials if r.latency_measured_ms is not None}
    assert set(timed) == {0, *(r.trial for r in front)}, "the front, and the plain net to compare with"
    for record in timed.values():
        wanted = clock(record.schedule)
        assert record.latency_measured_ms == pytest.approx(wanted.ms)
        assert record.latency_measured_se_ms == pytest.approx(0.02 * wanted.ms)
        assert record.feasible == (record.label != "plain"), "what counts is what was predicted"
    predicted = [r.cost("latency_ms") for r in front]
    errors = [1 - predicted[0] / (1.1 * BUDGET_MS), *([0.05 / 0.95] * (len(front) - 1))]
    text = "\n".join(notes.lines)
    assert f"mean error of the latency predictions {sum(errors) / len(errors):.1%}" in text
    assert f"measured over the budget of {BUDGET_MS:g} ms: trial {front[0].trial}" in text
    table = pd.read_csv(folder / "run/front.csv")
    assert table.trial.tolist() == [r.trial for r in front], "not hidden, not reordered"
    assert table.latency_measured_ms.tolist() == pytest.approx([timed[t].latency_measured_ms for t in table.trial])
    assert load_recipe(folder / f"run/recipes/{front[0].trial}.yaml").provenance["latency_measured_ms"] == (
        pytest.approx(1.1 * BUDGET_MS)
    )
    check_marked(result.trials, settings, front[0].trial)


def stored_profile(folder: Path) -> Path:
    """The path that the study's settings name: it must be the same to go on."""
    return Path(str(StudySettings.load(folder / "run/settings.yaml").latency_profile))


def check_marked(records: list[TrialRecord], settings: StudySettings, slow: int) -> None:
    stream = io.StringIO()
    print_front(Console(file=stream, width=80), records, axis=settings.axis)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    measured = {row[0]: row[3] for row in rows if row[0] and len(row) > 3}  # keep ratios follow in another table
    assert [trial for trial, cell in measured.items() if cell.endswith("!")] == [str(slow)]
    assert any("! predicted within the budget, but measured over it" in line for line in lines)
    figure = front_figure(records, title="t", axis=settings.axis)
    (broken,) = [t for t in figure.data if t.name == "measured: over budget"]
    record = next(r for r in records if r.trial == slow)
    assert broken.x == (record.latency_measured_ms,)
    assert figure.layout.xaxis.range[0] < broken.x[0] < figure.layout.xaxis.range[1], "in view"


@pytest.mark.slow
def test_front_is_measured_only_once(here: tuple[Path, LatencyTarget], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = here
    asked = measured_as(monkeypatch, lambda schedule: measurement(0.9 * model().latency_ms(schedule)))
    settings = tiny(folder, stored_profile(folder))
    notes = Notes()
    run_study(settings, notes)
    before = (folder / "run/trials.csv").read_bytes()
    assert len(asked) == 1
    # The plain net took a tenth less than when it was profiled.
    assert DRIFT < 0.1
    assert any("the plain network takes 180.00 ms now and took 200.00 ms when profiled" in line for line in notes.lines)
    again = Notes()
    run_study(settings, again)
    assert len(asked) == 1
    assert (folder / "run/trials.csv").read_bytes() == before
    assert any("front measured end to end" in line for line in again.lines), "still reported"
    assert not any("when profiled" in line for line in again.lines)


# -- budgets and profiles that are refused ----------------------------------------------------------------------------


OPTIONS = [option for option in tiny_options() if not option.startswith("--budget-gflops")]


def saves_most_at(ratio: float) -> Callable[[str], float]:
    """One ratio saves 20 ms in every layer, the others 1 ms."""

    def truth(name: str) -> float:
        form, _, rest = name.partition(" ")
        if form in ("hard", "soft") and rest[0].isdigit():
            return -20.0 if float(rest) == ratio else -1.0
        return 0.0

    return truth


def test_space_without_time_savings_is_refused(tmp_path: Path, ltmsearch: Ltmsearch) -> None:
    truth = {"hard 0.7": 3.0, "soft 0.7": 3.0}
    profile = hand_made_profile(lambda name: truth.get(name, 0.0), base_ms=BASE_MS, space=SOFT_AND_HARD).save(
        tmp_path / "slow.json"
    )
    given = ("--budget-ms", "100", "--latency-profile", str(profile), "--out", str(tmp_path / "run"))
    given += ("--space", SOFT_AND_HARD)
    code, _, err = ltmsearch("run", *OPTIONS, *given)
    assert code == 2
    assert err.startswith("error: --budget-ms 100 leaves nothing to search: no merge in the space saves ms; ")
    assert "mobilevit_xxs at 224 px costs 200.00; try larger images or batches" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


CONFLICT = "schema_version: 1\nfamily: mobilevit\nkeep_ratios: [0.7, 0.25]\nforms: [hard]\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget-ms", "0.5"), "--budget-ms 0.5 is too low: merging reaches 2"),
        (("--budget-ms", "300"), "--budget-ms 300 is above the cost of the plain network: merging reaches 20.0"),
        (("--budget-ms", "100", "--budget-gflops", "0.1"), "--budget-gflops 0.1 is too low"),
        (("--budget-ms", "100", "--budget-gflops", "9"), "--budget-gflops 9 is above the cost"),
        (("--budget-ms", "21", "--budget-gflops", "0.22"), "0.22 and --budget-ms 21 can be met separately"),
    ],
)  # fmt: skip
def test_impossible_budgets_are_refused(
    tmp_path: Path, arguments: tuple[str, ...], message: str, ltmsearch: Ltmsearch
) -> None:
    """Fastest is 0.7 in all nine layers, 200 − 9·20 ms; cheapest in multiply-adds is 0.25."""
    space = tmp_path / "space.yaml"
    space.write_text(CONFLICT)
    profile = hand_made_profile(saves_most_at(0.7), base_ms=BASE_MS, space=str(space)).save(tmp_path / "p.json")
    given = ("--latency-profile", str(profile), "--space", str(space), "--out", str(tmp_path / "run"))
    code, _, err = ltmsearch("run", *OPTIONS, *arguments, *given)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "the latency profile .*far.json cannot be read: No such file or directory"),
        (
            lambda path: path.write_text(path.read_text().replace('"mobilevit_xxs"', '"mobilevit_s"')),
            "far.json is a latency profile of the backbone mobilevit_s, but the study's is mobilevit_xxs",
        ),
        (
            lambda path: path.write_text(path.read_text().replace('"img_size": 224', '"img_size": 256')),
            "far.json is a latency profile of the image size 256, but the study's is 224",
        ),
        (
            lambda path: path.write_text(path.read_text().replace("hard 0.5", "hard 0.6")),
            r"far.json must have every choice of the search space: .* got 0.5 hard at stages",
        ),
    ],
    ids=["missing", "backbone", "image size", "a choice"],
)
def test_unfit_profiles_are_refused_first(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    path = hand_made_profile(ms, base_ms=BASE_MS, space=SOFT_AND_HARD).save(tmp_path / "far.json")
    change(path)
    with pytest.raises(InputError, match=message) as caught:
        run_study(tiny(tmp_path, path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_damaged_profile_of_a_run_is_not_replaced(finished: tuple[Path, Path, list[str]], tmp_path: Path) -> None:
    shutil.copytree(finished[0] / "run", tmp_path / "run")
    (tmp_path / "run/latency.json").write_text("{")
    with pytest.raises(InputError, match=r"run/latency.json must be a latency profile"):
        run_study(tiny(tmp_path, finished[1]))
    assert (tmp_path / "run/latency.json").read_text() == "{"


def test_front_command_uses_latency(
    finished: tuple[Path, Path, list[str]], tmp_path: Path, ltmsearch: Ltmsearch
) -> None:
    shutil.copytree(finished[0] / "run", tmp_path / "run")
    wanted = (tmp_path / "run/front.csv").read_text()
    (tmp_path / "run/front.csv").unlink()
    code, out, _ = ltmsearch("front", str(tmp_path / "run"), "--json")
    rows = json.loads(out)
    assert code == 0
    assert (tmp_path / "run/front.csv").read_text() == wanted
    assert [row["trial"] for row in rows] == [int(line.split(",")[0]) for line in wanted.splitlines()[1:]]
    assert all(row["latency_ms"] <= BUDGET_MS for row in rows)
