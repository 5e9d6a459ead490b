"""What is put into a study for its pages in the dashboard: attributes, files, notes and plots."""

import csv
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact
from optuna.trial import FrozenTrial, Trial
from optuna_dashboard import save_plotly_graph_object
from optuna_dashboard._note import get_note_from_system_attrs, note_str_key_prefix, note_ver_key, split_body

from ltmsearch.costs import GIGA
from ltmsearch.reporting.dashboard.notes import LayerTokens, kept, layer_tokens, renewed, study_note, trial_note
from ltmsearch.reporting.dashboard.pictures import merges_picture
from ltmsearch.reporting.dashboard.plots import plots
from ltmsearch.reporting.write import make_recipe
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.hooks import StudyHooks
from ltmsearch.search.records import TrialRecord, select_front
from ltmsearch.search.setup import Workbench
from ltmsearch.search.storage import ARTIFACTS
from ltmsearch.search.storage.optuna_private import set_system_attr, study_id, system_attrs
from ltmsearch.search.storage.optuna_private import trial_id as id_of
from ltmsearch.search.trial import ExampleMerges

SCHEDULE_COLUMNS = ("layer", "keep_ratio", "form", "tokens_before", "tokens_after", "windows")


class Attachment(NamedTuple):
    """A file of a trial."""

    name: str
    """Its ending says what it is."""
    content: bytes


@dataclass(frozen=True)
class DashboardHooks(StudyHooks):
    """Writes the notes, files and plots of one study. Repeating a call replaces what the first one wrote."""

    bench: Workbench
    folder: Path
    """The run directory."""

    def trial_started(self, trial: Trial, schedule: MergeSchedule) -> None:
        """Give a trial that runs the attributes that its schedule alone decides."""
        layers, known = self._layers(schedule), trial.user_attrs
        attributes: dict[str, Any] = {
            "kind": known.get("kind", "searched"),
            "gflops": self.bench.costs.gflops(schedule),
            "tokens_kept": round(kept(layers), 4),
            "tokens_last": layers[-1].after,
        }
        if self.bench.latency is not None:
            attributes["latency_ms"] = max(0.0, self.bench.latency.model.latency_ms(schedule))
        for name, value in attributes.items():
            if name not in known:
                trial.set_user_attr(name, value)

    def trial_scored(self, trial: Trial, record: TrialRecord, merges: ExampleMerges | None) -> None:
        """Give a trial that runs its files: the schedule, the recipe and a picture. Optuna takes none once it is told.

        Args:
            trial: Running.
            record: As it will be told.
            merges: What is to be drawn, if anything.
        """
        folder = self.folder / ARTIFACTS
        folder.mkdir(exist_ok=True)
        store = FileSystemArtifactStore(folder)
        known = {file.filename: file.artifact_id for file in get_all_artifact_meta(trial, storage=trial.storage)}
        number, layers = record.trial, self._layers(self._schedule(record))
        recipe = make_recipe(record, self.bench.settings, num_classes=self.bench.evaluator.data.num_classes)
        files = [
            Attachment(f"schedule-{number}.csv", _schedule_table(layers)),
            Attachment(f"recipe-{number}.yaml", recipe.to_yaml().encode()),
        ]
        if merges is not None and any(merges.layers):
            files.append(Attachment(f"merges-{number}.png", merges_picture(merges, self.bench.settings)))
        with tempfile.TemporaryDirectory() as scratch:
            for file in files:
                if file.name in known:  # an interrupted trial has it, perhaps half of it
                    store.write(known[file.name], io.BytesIO(file.content))
                    continue
                path = Path(scratch, file.name)
                path.write_bytes(file.content)
                upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial)

    def trial_finished(self, study: optuna.Study, trial: FrozenTrial, record: TrialRecord) -> None:
        """Give a trial that was just told its note."""
        self._write_note(study, id_of(trial), self._trial_note(record, on_front=False), version=1)

    def study_updated(self, study: optuna.Study, records: list[TrialRecord]) -> None:
        """Bring all notes up to what is known now, and the plots where there is a front.

        Args:
            records: All trials.
        """
        held = system_attrs(study)
        front = select_front(records, self.bench.settings.axis.name)
        ids = {trial.number: id_of(trial) for trial in study.get_trials(deepcopy=False)}
        notes: dict[int | None, str] = {
            ids[record.trial]: self._trial_note(record, on_front=record in front) for record in records
        }
        notes[None] = study_note(self.bench.settings, records, base_gflops=self._base, link=partial(_link, study))
        for trial_id, text in notes.items():
            present = get_note_from_system_attrs(held, trial_id)
            if (new := renewed(text, present["body"])) is not None:
                older = sum(name.startswith(note_str_key_prefix(trial_id)) for name in held)
                self._write_note(study, trial_id, new, version=present["version"] + 1, older=older)
        if front:
            for name, figure in plots(records, self.bench.settings.axis).items():
                save_plotly_graph_object(study, figure, graph_object_id=name)

    @property
    def _base(self) -> float:
        return self.bench.costs.base_macs / GIGA

    def _trial_note(self, record: TrialRecord, *, on_front: bool) -> str:
        layers, axis = self._layers(self._schedule(record)), self.bench.settings.axis
        return trial_note(record, layers, axis, base_gflops=self._base, on_front=on_front)

    def _write_note(
        self, study: optuna.Study, trial_id: int | None, text: str, *, version: int, older: int = 0
    ) -> None:
        """Write a note of the study or a trial.

        `optuna_dashboard.save_note` reads the notes of all trials for each that it writes.

        Args:
            trial_id: None: of the study.
            text: Markdown.
            version: One more than that of the note in whose place it comes.
            older: Parts that the older note was stored in.
        """
        parts = split_body(text, trial_id)
        stale = {f"{note_str_key_prefix(trial_id)}{part}": "" for part in range(len(parts), older)}
        for name, value in {note_ver_key(trial_id): version, **parts, **stale}.items():
            set_system_attr(study, name, value)

    def _schedule(self, record: TrialRecord) -> MergeSchedule:
        return record.schedule

    def _layers(self, schedule: MergeSchedule) -> list[LayerTokens]:
        return layer_tokens(self.bench.costs, schedule)


def _link(study: optuna.Study, number: int) -> str:
    return f"/dashboard/studies/{study_id(study)}/trials?numbers={number}"


def _schedule_table(layers: Sequence[LayerTokens]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(SCHEDULE_COLUMNS)
    writer.writerows((e.layer, e.keep_ratio, e.form or "plain", e.before, e.after, e.windows) for e in layers)
    return stream.getvalue().encode()
