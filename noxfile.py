"""What is checked, and how: `nox`, or `nox -s tests -- -k settle`."""

import nox

nox.needs_version = ">=2025.2"
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = True
PROJECT = nox.project.load_toml("pyproject.toml")
CODE = ("engine_router", "tests", "scripts", "noxfile.py")


def install(session: nox.Session, *groups: str, extras: str = "") -> None:
    wanted = [need for group in groups for need in nox.project.dependency_groups(PROJECT, group)]
    session.install("-e", f".{extras}", *wanted)


@nox.session
def lint(session: nox.Session) -> None:
    install(session, "lint")
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)
    # What flake8-async knows beyond ruff's own ASYNC rules.
    session.run(
        "flake8", "--select=ASYNC", "--extend-ignore=ASYNC105,ASYNC110,ASYNC127,ASYNC240", "engine_router"
    )
    session.run("lint-imports", "--no-cache")


@nox.session
def types(session: nox.Session) -> None:
    install(session, "types", extras="[llamacpp,nvidia]")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    install(session, "test", extras="[llamacpp,nvidia]")
    session.run("coverage", "run", "-m", "pytest", *(session.posargs or ["-q"]))
    if not session.posargs:
        session.run("coverage", "combine", "--quiet", success_codes=[0, 1])
        session.run("coverage", "report", "--fail-under=85")
