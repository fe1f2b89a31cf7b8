"""A scan of the folders of models on behalf of a command, as the router does it when it starts."""

from __future__ import annotations

import time

import trio

from engine_router.config import Config
from engine_router.models.folder_scans import FolderScans
from engine_router.models.found import scan_requests, served_by_file, taken_names
from engine_router.models.header_memory import HeaderMemory
from engine_router.models.scan.scanner import Scanner
from engine_router.reload import headers_file
from engine_router.residency.measurements import state_file_of


async def scanned(config: Config) -> FolderScans:
    """Look through the folders that a configuration names, if it names any. Cancellation ends it at once."""
    scans, requests = FolderScans(), scan_requests(config)
    if requests:
        began, at, headers = trio.current_time(), time.time(), HeaderMemory()
        await trio.to_thread.run_sync(headers.load, headers_file(state_file_of(config)))
        result = await Scanner(headers).scan(requests, taken_names(config), served_by_file(config))
        scans.note(result, at=at, took_s=trio.current_time() - began)
    return scans
