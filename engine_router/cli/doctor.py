"""`engine-router doctor`: one screen of what works and what does not."""

from __future__ import annotations

import argparse
from pathlib import Path

import attrs
import trio

from engine_router.cli.address import RouterAddress, locate
from engine_router.cli.client import get_status, post
from engine_router.cli.exit_codes import FAILED, OK, CommandFailed
from engine_router.cli.formatting import counted, seconds
from engine_router.cli.scanned_folders import scanned
from engine_router.cli.terminal import say, show_json
from engine_router.composition import open_router
from engine_router.config import Config, find_config, is_open_to_network, load_config
from engine_router.config.environment import Environment
from engine_router.errors import ConfigError, RouterError
from engine_router.models.config_warnings import warnings
from engine_router.models.found import with_found
from engine_router.setup import doctor
from engine_router.setup.doctor import Finding
from engine_router.setup.hardware import find_hardware

_SIGNS = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}
START_TIMEOUT_S = 3600.0
_FAULTS_SHOWN = 20


def run(options: argparse.Namespace) -> int:
    """Examine this machine and the configuration; exits with 1 where there is a problem.

    Raises:
        ConfigError: the configuration that was named is not there.
    """
    findings = trio.run(_examine, options)
    problems = sum(finding.grade == "problem" for finding in findings)
    if options.json:
        show_json({"ok": not problems, "findings": [attrs.asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            say(f"{_SIGNS[finding.grade]}  {finding.subject}: {finding.words}")
            if finding.remedy and finding.grade != "ok":
                say(f"         -> {finding.remedy}")
        say(f"\n{counted(problems, 'problem')}" if problems else "\nall is well")
    return FAILED if problems else OK


async def _examine(options: argparse.Namespace) -> list[Finding]:
    hardware = await trio.to_thread.run_sync(find_hardware)
    findings = [*doctor.of_software(), *doctor.of_clock(), *doctor.of_hardware(hardware)]
    environment = Environment()
    try:
        path = find_config(options.config)
        config = load_config(path, environment)
    except ConfigError as error:
        if options.config is not None and not Path(options.config).exists():
            raise
        words = [f"{place}: {said}" if place else said for place, said in error.faults[:_FAULTS_SHOWN]]
        return [
            *findings,
            *(Finding("problem", "Configuration", f"{error.source}: {said}") for said in words),
        ]
    findings.append(Finding("ok", "Configuration", f"{path}: {counted(len(config.engines), 'engine')}"))
    scans = await scanned(config)
    config = with_found(config, scans.result.models)
    warned = await trio.to_thread.run_sync(lambda: warnings(config, has_scanned=True))
    findings += [
        Finding("problem", place, environment.masked(words), "see engine-router check")
        for place, words in warned
    ]
    address = _running(options)
    totals: dict[str, int] = {}
    findings += [each async for each in doctor.of_gauges(config, hardware, totals)]
    findings += [each async for each in doctor.of_programs(config)]
    findings += [each async for each in doctor.of_containers(config)]
    findings += [each async for each in doctor.of_ports(config, is_running=address is not None)]
    findings += doctor.of_keys(config, is_open=is_open_to_network(config.server))
    needs = await trio.to_thread.run_sync(doctor.needs_of, config)
    findings += doctor.of_models(scans.result, needs, doctor.totals_of(config, totals))
    findings += [each async for each in doctor.of_traces(config)]
    findings += doctor.of_disks(config)
    findings += [each async for each in doctor.of_lingering()]
    if options.start is not None:
        findings.append(await _started(config, address, options.start))
    return findings


def _running(options: argparse.Namespace) -> RouterAddress | None:
    """Return the address of the router that runs; None where none does."""
    address = locate(options)
    try:
        get_status(address)
    except CommandFailed:
        return None
    return address


async def _started(config: Config, address: RouterAddress | None, model: str) -> Finding:
    """Start a model: by the router that runs, else by one of this command's own."""
    subject, began = f"Start of {model}", trio.current_time()
    try:
        if address is not None:
            body = {"model": model, "wait": True}
            await trio.to_thread.run_sync(
                lambda: post(address, "/admin/load", body, timeout_s=START_TIMEOUT_S)
            )
        else:
            async with (
                open_router(
                    attrs.evolve(config, scheduling=attrs.evolve(config.scheduling, preload=()))
                ) as router,
                router.lease(model),
            ):
                pass
    except (RouterError, CommandFailed) as error:
        return Finding("problem", subject, str(error), f"engine-router logs {model}")
    return Finding("ok", subject, f"ready after {seconds(trio.current_time() - began)}")
