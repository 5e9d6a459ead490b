"""Taking subnets out of a study or a training and into use: recipes, weights, programs."""

from ltmsearch.export.choice import choose_trials
from ltmsearch.export.folder import ExportedFile
from ltmsearch.export.run import export_run

__all__ = ["ExportedFile", "choose_trials", "export_run"]
