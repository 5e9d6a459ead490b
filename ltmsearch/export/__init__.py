"""Export of subnets from a study or a training: recipes, weights and programs."""

from ltmsearch.export.run import export_run
from ltmsearch.export.subnets import choose_trials
from ltmsearch.programs import ExportedFile

__all__ = ["ExportedFile", "choose_trials", "export_run"]
