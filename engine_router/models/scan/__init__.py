"""The scan of model folders: what lies in folders and in the caches of other programs, by names that people type.

`scanner` is imported by whoever scans: many routers never do.
"""

from engine_router.models.scan.results import (
    NOT_THERE,
    Format,
    FoundModel,
    PlaceState,
    ScanRequest,
    ScanResult,
    Skipped,
)

__all__ = ["NOT_THERE", "Format", "FoundModel", "PlaceState", "ScanRequest", "ScanResult", "Skipped"]
