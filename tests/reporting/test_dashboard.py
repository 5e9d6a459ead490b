"""The dashboard's pages: their content, written once, with a person's own notes kept; and the server."""

import csv
import io
import json
import shutil
import signal
import socket
import sys
import urllib.request
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta
from optuna.trial import FrozenTrial, Trial, TrialState
from optuna_dashboard import get_note, save_note
from PIL import Image
from support.command_line import Interrupt, Notes, tiny
from support.finished import REJECTING
from support.processes import PIPE, completed, started

from ltmsearch import run_study
from ltmsearch.config.objective import CostAxis
from ltmsearch.config.recipe import Recipe
from ltmsearch.errors import InputError, TrialDiverged
from ltmsearch.reporting.dashboard.note_storage import NoteStorage
from ltmsearch.reporting.dashboard.notes import LAST_LINE
from ltmsearch.reporting.dashboard.server import serve_dashboard
from ltmsearch.reporting.findings import findings_of
from ltmsearch.reporting.numbers import points, with_error
from ltmsearch.search.driver import Driver
from ltmsearch.search.records import select_front
from ltmsearch.search.run import Run
from ltmsearch.search.shared_weights import SharedWeights
from ltmsearch.search.trial import Evaluator


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PNG starts a browser; its own tests do that."""
    monkeypatch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)


def study_of(run: Path) -> optuna.Study:
    storage = optuna.storages.RDBStorage(f"sqlite:///{run / 'study.db'}")
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def axis_of(run: Path) -> CostAxis:
    return Run.open(run).settings.axis


def notes_of(study: optuna.Study) -> dict[int, str]:
    return {trial.number: get_note(Trial(study, trial._trial_id)) for trial in study.trials}


def files_of(run: Path, study: optuna.Study, trial: FrozenTrial) -> dict[str, bytes]:
    """By name; each must be there once."""
    store = FileSystemArtifactStore(run / "artifacts")
    found = get_all_artifact_meta(trial, storage=study._storage)
    files = {}
    for file in found:
        with store.open_reader(file.artifact_id) as stream:
            files[file.filename] = stream.read()
    assert len(files) == len(found)
    return files


def rows(note: str) -> list[list[str]]:
    """The cells of all tables in a note."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in note.splitlines() if line.startswith("|")]


class TestFinishedStudy:
    def test_trials_have_attributes(self, rejecting: Path) -> None:
        records = {record.trial: record for record in Run.open(rejecting).trials}
        study = study_of(rejecting)
        assert {trial.state for trial in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
        for trial in study.trials:
            attributes, record = trial.user_attrs, records[trial.number]
            assert attributes["gflops"] == record.gflops
            assert attributes["kind"] == record.kind
            assert 0 < attributes["tokens_kept"] <= 1
            assert (attributes["tokens_kept"] == 1) == (not record.schedule.merging_layers)
            assert attributes["ib_weight"] == record.ib_weight
            if record.state == "scored":
                assert attributes["supernet_version"] == record.supernet_version
        plain = study.trials[0].user_attrs
        assert plain["label"] == "plain"
        assert plain["tokens_last"] == 16, "a 4×4 grid of patches at 224 px"

    def test_trial_notes_have_schedule_costs_and_scores(self, rejecting: Path) -> None:
        records = Run.open(rejecting).trials
        notes = notes_of(study_of(rejecting))
        front = select_front(records, axis_of(rejecting))
        assert front
        for record in records:
            cells = rows(notes[record.trial])
            facts = {row[0]: row[1] for row in cells if len(row) == 2}
            assert facts["GFLOPs"].startswith(f"{record.gflops:.4f} (")
            schedule = {row[0]: row for row in cells if len(row) == 4}
            for layer, ratio in record.schedule.keep_ratios.items():
                before, after = (int(count) for count in schedule[layer][3].split(" → "))
                assert schedule[layer][1] == f"{ratio:g}"
                assert (after < before) == (schedule[layer][2] == "matched")
            then = [value for name, value in facts.items() if name.startswith("search images, when it ran")]
            final = [value for name, value in facts.items() if name.startswith("validation images, final weights")]
            assert [f"top-1 {record.top1:.1f} ± " in value for value in then] == [True] * (record.state == "scored")
            assert [f"loss {record.rescored_loss:.4f} nats" in value for value in final] == [True] * (
                record.rescored_loss is not None
            )
            shown = {
                "top-1 of reported images": with_error(record.report_top1, record.report_top1_se) + " %",
                "top-1 less the plain network's": points(record.difference, record.difference_se) + " points",
                "agreement with the plain network": with_error(record.agreement, record.agreement_se) + " %",
            }
            assert {name: facts.get(name) for name in shown} == (
                dict.fromkeys(shown) if record.report_top1 is None else shown
            )
            assert (": on the front." in notes[record.trial]) == (record in front)
            assert ("rejected by its cost" in notes[record.trial]) == (record.state == "over budget")

    def test_study_note_has_the_front_with_links(self, rejecting: Path) -> None:
        study = study_of(rejecting)
        run = Run.open(rejecting)
        note, findings = get_note(study), findings_of(run)
        assert findings.verdict is not None
        linked = [row[0] for row in rows(note) if row[0].startswith("[")]
        marks = {findings.verdict.recommended: "→ "}
        shown = [
            f"[{marks.get(r.trial, '')}{r.trial}](/dashboard/studies/{study._study_id}/trials?numbers={r.trial})"
            for r in run.front
        ]
        assert linked[: len(run.front)] == shown
        assert note.index("Take ") < note.index("### Front"), "the verdict is above the table"
        assert "0.24 GFLOPs at 224 px" in note
        assert note.rstrip().endswith(LAST_LINE)

    def test_plots_are_front_and_layers(self, rejecting: Path) -> None:
        study = study_of(rejecting)
        attrs = study._storage.get_study_system_attrs(study._study_id)
        plots: dict[str, str] = {}
        for name in sorted(attrs, key=lambda name: int(name.rpartition(":")[2]) if name[-1].isdigit() else 0):
            if name.startswith("dashboard:plot_data:"):
                plots.setdefault(name.split(":")[2], "")
                plots[name.split(":")[2]] += attrs[name]
        assert plots.keys() == {"front", "layers"}
        rings = [t for t in json.loads(plots["front"])["data"] if t.get("name", "").startswith("front")]
        costs = [cost for ring in rings for cost in ring["x"]]
        assert sorted(costs) == sorted(record.gflops for record in Run.open(rejecting).front)
        assert "stages.2.1.transformer.0" in plots["layers"]

    def test_files_are_schedule_recipe_and_picture(self, rejecting: Path) -> None:
        records = {record.trial: record for record in Run.open(rejecting).trials}
        study, number = study_of(rejecting), 0
        for trial in study.trials:
            files, record = files_of(rejecting, study, trial), records[trial.number]
            number += len(files)
            if trial.state == TrialState.PRUNED:
                assert files == {}
                continue
            n = trial.number
            drawn = [f"merges-{n}.png"] if record.schedule.merging_layers else []
            assert sorted(files) == sorted([f"schedule-{n}.csv", f"recipe-{n}.yaml", *drawn])
            table = list(csv.DictReader(io.StringIO(files[f"schedule-{n}.csv"].decode())))
            assert {row["layer"]: float(row["keep_ratio"]) for row in table} == record.schedule.keep_ratios
            recipe = Recipe.model_validate(yaml.safe_load(files[f"recipe-{n}.yaml"]))
            assert recipe.schedule == record.schedule
            proxy = recipe.provenance["proxy"]
            assert proxy["value"] == record.told(proxy["measure"])
            assert (proxy["scored_with"], proxy["report_top1"]) == ("weights of the trial", None)
            for name in drawn:
                assert len(files[name]) < 50_000
                with Image.open(io.BytesIO(files[name])) as picture:
                    assert picture.width > picture.height > 200
        assert len(list((rejecting / "artifacts").iterdir())) == number, "no other file is left"

    def test_a_second_run_changes_nothing(self, rejecting: Path, tmp_path: Path) -> None:
        run = Path(shutil.copytree(rejecting, tmp_path / "run"))
        study = study_of(run)
        before = study._storage.get_study_system_attrs(study._study_id)
        run_study(tiny(run, **REJECTING))
        study = study_of(run)
        assert study._storage.get_study_system_attrs(study._study_id) == before
        assert sorted(p.name for p in (run / "artifacts").iterdir()) == sorted(
            p.name for p in (rejecting / "artifacts").iterdir()
        )


@pytest.mark.slow
def test_text_below_the_line_stays(rejecting: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(rejecting, tmp_path / "run"))
    study = study_of(run)
    old = notes_of(study)
    save_note(study, get_note(study) + "\nShow this to Ada.\n")
    save_note(Trial(study, study.trials[1]._trial_id), old[1] + "\nToo slow on the phone.\n")
    save_note(Trial(study, study.trials[2]._trial_id), "All my own words.")
    run_study(tiny(run, **{**REJECTING, "budget_gflops": 0.23}))
    study = study_of(run)
    new = notes_of(study)
    assert "Show this to Ada." in get_note(study)
    assert "0.23 GFLOPs at 224 px" in get_note(study)
    assert "Too slow on the phone." in new[1]
    assert new[2] == "All my own words."


def test_other_budgets_keep_notes_files_and_attributes(rejecting: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(rejecting, tmp_path / "run"))
    before = study_of(rejecting)
    run_study(tiny(run, **{**REJECTING, "budget_gflops": 0.23}))
    after = study_of(run)
    assert after._study_id != before._study_id
    records = {record.trial: record for record in Run.open(run).trials}
    notes = notes_of(after)
    for old, new in zip(before.trials, after.trials, strict=True):
        assert files_of(run, after, new) == files_of(rejecting, before, old)
        assert new.user_attrs == old.user_attrs
        record = records[new.number]
        over = record.state == "scored" and not record.feasible
        assert ("over the budget" in notes[new.number]) == (over or record.state == "over budget")
    assert f"/dashboard/studies/{after._study_id}/trials" in get_note(after)
    attrs = after._storage.get_study_system_attrs(after._study_id)
    ids = {str(trial._trial_id) for trial in after.trials}
    assert {name.split(":")[1] for name in attrs if name.split(":")[1].isdigit()} == ids


@pytest.mark.parametrize(
    "moment",
    [
        "before the weights are saved",
        pytest.param("while files are written", marks=pytest.mark.slow),
        pytest.param("before it is stored", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_an_interrupted_trial_has_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    target, name = {
        "while files are written": (FileSystemArtifactStore, "write"),
        "before the weights are saved": (SharedWeights, "save"),
        "before it is stored": (Driver, "_store"),
    }[moment]
    original, left = getattr(target, name), [5]

    def dies(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("power cut")
        return original(*args, **kwargs)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(target, name, dies)
        with pytest.raises(RuntimeError, match="power cut"):
            run_study(tiny(run))
    run_study(tiny(run))
    study = study_of(run)
    for trial in study.trials:
        files = files_of(run, study, trial)
        assert all(files.values()), "none is empty"
        merges = not trial.user_attrs.get("label", "").startswith("plain")
        wanted = 2 + merges if trial.state == TrialState.COMPLETE else 0  # schedule and recipe, and a picture
        assert len(files) == wanted
    number = sum(len(files_of(run, study, trial)) for trial in study.trials)
    assert len(list((run / "artifacts").iterdir())) == number


@pytest.mark.long
def test_failed_trials_have_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = Evaluator.evaluate, [0]

    def diverge_once(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise TrialDiverged("the proxy training diverged")
        return original(*args, **kwargs)

    monkeypatch.setattr(Evaluator, "evaluate", diverge_once)
    run_study(tiny(tmp_path / "run", trials=3))
    study = study_of(tmp_path / "run")
    (failed,) = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert failed.user_attrs["failure"] == "the proxy training diverged"
    assert "failed; the attribute `failure` has the reason." in notes_of(study)[failed.number]
    assert files_of(tmp_path / "run", study, failed) == {}


@pytest.mark.long
def test_a_running_study_has_a_note_without_front(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_study(tiny(tmp_path / "run"), Interrupt(6))
    study = study_of(tmp_path / "run")
    assert "The front is shown here at the end of the search" in get_note(study)
    finished = [trial for trial in study.trials if trial.state.is_finished()]
    assert finished
    assert all(LAST_LINE in notes_of(study)[trial.number] for trial in finished)


def test_a_long_note_becomes_short_again(rejecting: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(rejecting, tmp_path / "run"))
    study = study_of(run)
    trial = study.trials[1]
    save_note(Trial(study, trial._trial_id), "word " * 2000 + LAST_LINE)
    NoteStorage(study).write(trial._trial_id, "short")
    assert notes_of(study)[1] == NoteStorage(study).read(trial._trial_id) == "short"


class TestServer:
    @pytest.mark.long
    @pytest.mark.parametrize(
        ("number", "code", "last"), [(signal.SIGINT, 0, ""), (signal.SIGTERM, 143, "terminated\n")]
    )
    def test_a_signal_stops_it(self, rejecting: Path, number: signal.Signals, code: int, last: str) -> None:
        command = [sys.executable, "-m", "ltmsearch", "dashboard", str(rejecting), "--port", "0"]
        with started(command, stdout=PIPE, stderr=PIPE) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith(f"dashboard of {rejecting} at http://127.0.0.1:")
            address = line.split()[4]
            with urllib.request.urlopen(address, timeout=30) as page:
                assert b"<title>Optuna Dashboard" in page.read()
            process.send_signal(number)
            out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (code, "", last)

    def test_port_in_use(self, rejecting: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            command = [sys.executable, "-m", "ltmsearch", "dashboard", str(rejecting), "--port", str(port)]
            done = completed(command, check=False)
        assert done.returncode == 2
        assert done.stdout == "", "no address is printed"
        assert done.stderr == f"error: cannot listen on 127.0.0.1:{port}: Address already in use\n"

    def test_folder_without_a_study(self, rejecting: Path, tmp_path: Path) -> None:
        def refused(run: Path) -> str:
            with pytest.raises(InputError) as caught:
                serve_dashboard(run, host="127.0.0.1", port=0, callbacks=Notes())
            return str(caught.value)

        assert refused(tmp_path) == f"expected the run directory of a study, but {tmp_path} has no settings.yaml"
        shutil.copy(rejecting / "settings.yaml", tmp_path)
        assert f"but {tmp_path}/study.db is missing" in refused(tmp_path)
        assert not (tmp_path / "study.db").exists()
        (tmp_path / "study.db").write_text("no database")
        assert "is damaged or foreign (file is not a database)" in refused(tmp_path)
