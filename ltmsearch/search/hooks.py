"""Hooks: what a study calls as its trials start, are scored and end."""

import optuna
from optuna.trial import FrozenTrial, Trial

from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.records import TrialRecord
from ltmsearch.search.trial import ExampleMerges


class StudyHooks:
    """Called by the driver of a study. This one does nothing; the dashboard writes notes, files and plots.

    A hook may be called again for a trial that an interrupted run left unfinished.
    """

    def trial_started(self, trial: Trial, schedule: MergeSchedule) -> None:
        """A trial has its schedule; its cost may still reject it."""

    def trial_scored(self, trial: Trial, record: TrialRecord, merges: ExampleMerges | None) -> None:
        """A trial is scored and about to be stored as `record`: the last moment at which Optuna takes files for it."""

    def trial_finished(self, study: optuna.Study, trial: FrozenTrial, record: TrialRecord) -> None:
        """A trial is stored, scored or not."""

    def study_updated(self, study: optuna.Study, records: list[TrialRecord]) -> None:
        """The whole study is up to date: before the search, and after the final scores."""
