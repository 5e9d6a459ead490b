"""One driver per study: the driver is recorded with the study, and a second driver is refused."""

from ltmsearch.search.lease.driver_file import DRIVER_FILE, DriverFile
from ltmsearch.search.lease.holder import Holder, Record
from ltmsearch.search.lease.lease import Lease, current_driver

__all__ = ["DRIVER_FILE", "DriverFile", "Holder", "Lease", "Record", "current_driver"]
