"""The last scan of model folders as plain data for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from engine_router.guards.foreign_text import shown
from engine_router.models.folder_scans import FolderScans

_SKIPPED_SHOWN: Final = 200


def scan_entry(scans: FolderScans) -> Mapping[str, Any]:
    """Return the folders, with how many models each holds or what is wrong with it, and the files that are none.

    Companions of models, such as projectors, are left out: nothing is wrong with them.
    """
    faults = [skipped for skipped in scans.result.skipped if skipped.is_fault]
    return {
        "scanned_at": scans.at,
        "took_s": None if scans.took_s is None else round(scans.took_s, 3),
        "folders": {
            place: {
                "paths": [shown(str(path)) for path in state.folders],
                "models": state.models,
                "error": state.fault,
            }
            for place, state in scans.result.places.items()
        },
        "broken": [
            {"path": shown(str(skipped.path)), "reason": skipped.reason}
            for skipped in faults[:_SKIPPED_SHOWN]
        ],
        "broken_total": len(faults),
    }
