"""One driver per study: who drives it is written where the study lies, and a second driver is refused."""

from ltmsearch.lease.board import DRIVER, Board, FileBoard, Posted
from ltmsearch.lease.holding import Lease, who_drives
from ltmsearch.lease.owner import Owner

__all__ = ["DRIVER", "Board", "FileBoard", "Lease", "Owner", "Posted", "who_drives"]
