"""`engine-router service`: the router as a service that starts by itself."""

from __future__ import annotations

import argparse
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import attrs

from engine_router import __version__
from engine_router.cli.exit_codes import BAD_USAGE, FAILED, OK, CommandFailed
from engine_router.cli.questions import Questions
from engine_router.cli.terminal import say
from engine_router.config import find_config, load_config
from engine_router.guards.masking import own_environment
from engine_router.setup.service.base import ServiceManager
from engine_router.setup.service.managers import NoServiceManager, is_running, manager_for
from engine_router.setup.service.settings import NAME, ServiceSettings, is_closed, settings_of
from engine_router.setup.service.steps import RemoveFile, RunCommand, Step, StepFailed, carry_out
from engine_router.setup.service.systemd import is_lingering

_SYSTEM_CONFIG = Path("/etc/engine-router/engines.toml")


def run(options: argparse.Namespace) -> int:
    """Do what is asked of the service.

    Raises:
        ConfigError: the configuration that it would serve has faults.
        CommandFailed: there is no service manager, or it refused.
    """
    if options.run_as is not None and not options.system:
        raise CommandFailed("--as is for --system: a user's service runs as that user", BAD_USAGE)
    if options.purge and not (options.system and options.action == "uninstall"):
        raise CommandFailed(
            "--purge is for uninstall --system: another service's models and state are its user's", BAD_USAGE
        )
    try:
        manager = _manager(options)
    except NoServiceManager as error:
        raise CommandFailed(str(error)) from None
    action = options.action
    if action == "status":
        return _shown(manager.status())
    if action == "logs":
        return _shown(manager.logs(follow=options.follow, lines=options.lines))
    if action == "install":
        return _install(options, manager)
    steps = manager.uninstall() if action == "uninstall" else manager.act(action)
    gone = "is taken away; the configuration stays"
    if options.system and not options.purge:
        gone += f", and so does what {NAME} learned and fetched (--purge takes that and its user away, too)"
    if not options.system and is_lingering():
        gone += "; other units of yours still run without a login (loginctl disable-linger ends that)"
    done = {"uninstall": gone, "start": "runs", "stop": "is stopped"}
    return _do(options, steps, f"{manager.title} {done.get(action, 'runs')}.")


def offer(config: Path, questions: Questions) -> None:
    """Offer to install the service for a configuration that was just written, where that can be done."""
    if not is_running():
        return
    try:
        manager = manager_for(is_system=False, lingers=True)
        if not questions.yes("Have the router start by itself, as a service of yours?", default=False):
            return
    except (NoServiceManager, CommandFailed):  # the second one: nobody is there to answer
        return
    try:
        carry_out(manager.install(_settings(config, None)), tell=say)
    except StepFailed as failure:
        say(f"That did not work: {failure}. `engine-router serve` runs it by hand.")
        return
    say(f"{manager.title} runs. engine-router service status, stop, logs and uninstall are for later.")


def _manager(options: argparse.Namespace) -> ServiceManager:
    user = (options.run_as or NAME) if options.system else None
    return manager_for(
        is_system=options.system, lingers=not options.no_linger, user=user, purges=options.purge
    )


def _settings(config: Path, user: str | None) -> ServiceSettings:
    return settings_of(load_config(config), config, version=__version__, user=user)


def _install(options: argparse.Namespace, manager: ServiceManager) -> int:
    default = str(_SYSTEM_CONFIG) if options.system and options.config is None else options.config
    user = (options.run_as or NAME) if options.system else None
    settings = _settings(find_config(default), user)
    if options.system:  # variables of the person who installs it are about that person's folders
        shared = {k: v for k, v in settings.environment.items() if not k.startswith("XDG_")}
        settings = attrs.evolve(settings, environment=shared)
    if options.print:
        say(manager.file_text(settings), end="")
        return OK
    if options.system and options.run_as is None and not options.dry_run:
        _refuse_closed(settings)
    return _do(options, manager.install(settings), f"{manager.title} runs, and starts by itself from now on.")


def _refuse_closed(settings: ServiceSettings) -> None:
    """Refuse what a user of the service's own cannot reach: homes are closed to others.

    Raises:
        CommandFailed: the program, what it leads to, or the configuration lies in a folder of that kind.
    """
    program = Path(settings.command[0])
    for path in (program, program.resolve(), settings.config):
        for folder in path.parents:
            if is_closed(folder, stat.S_IXOTH):
                raise CommandFailed(
                    f"{path} lies in {folder}, which the service's user may not enter, and nothing was changed: put it "
                    "where everybody may (install.sh does, with ENGINE_ROUTER_HOME=/opt/engine-router "
                    "ENGINE_ROUTER_BIN=/usr/local/bin), or name somebody who may enter with --as"
                )


def _do(options: argparse.Namespace, steps: Sequence[Step], done: str) -> int:
    if options.dry_run:
        for step in steps:
            say(str(step))
        return OK
    if (program := _program_not_found(steps)) is not None:
        if not any(isinstance(step, RemoveFile) for step in steps):
            raise CommandFailed(
                f"{program} was not found: this machine has no such service manager, and nothing was changed. In a "
                "container, have engine-router serve as its command"
            )
        steps = [step for step in steps if isinstance(step, RemoveFile)]
    try:
        carry_out(steps, tell=say, force=options.force)
    except StepFailed as failure:
        raise CommandFailed(_with_remedy(str(failure), is_system=options.system), FAILED) from None
    say(done)
    return OK


def _program_not_found(steps: Sequence[Step]) -> str | None:
    """Return the service manager's program where it is not installed: a file without it would be half a service."""
    programs = (step.argv[0] for step in steps if isinstance(step, RunCommand))
    return next((program for program in programs if shutil.which(program) is None), None)


def _with_remedy(words: str, *, is_system: bool) -> str:
    if "Failed to connect to bus" in words and not is_system:
        return f"{words}. No systemd of this user's runs here: log in directly (not by su), or use --system"
    if "ermission denied" in words and is_system:
        return f"{words}. A system service needs root: sudo"
    return words


def _shown(argv: Sequence[str]) -> int:
    """Run a command whose output is what the person asked for."""
    sys.stdout.flush()
    try:
        return subprocess.run(list(argv), check=False, env=own_environment()).returncode  # noqa: S603 - made here
    except FileNotFoundError:
        raise CommandFailed(f"{argv[0]} was not found: this machine has no such service manager") from None
    except KeyboardInterrupt:
        return OK
