"""The scan of model folders: what lies in folders and in the caches of other programs, by names that people type."""

from engine_router.models.scan.results import Format, FoundModel, PlaceState, ScanRequest, ScanResult, Skipped
from engine_router.models.scan.scanner import Scanner

__all__ = ["Format", "FoundModel", "PlaceState", "ScanRequest", "ScanResult", "Scanner", "Skipped"]
