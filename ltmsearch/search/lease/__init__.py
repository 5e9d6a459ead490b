"""One driver per study: who drives it is written where the study lies, and a second driver is refused."""

from ltmsearch.search.lease.board import DRIVER, Board, FileBoard, Posted
from ltmsearch.search.lease.lease import Lease, who_drives
from ltmsearch.search.lease.owner import Owner

__all__ = ["DRIVER", "Board", "FileBoard", "Lease", "Owner", "Posted", "who_drives"]
