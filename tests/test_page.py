"""The page and its files, as they are served, and the build hook that makes them."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import shutil
import stat
from pathlib import Path, PurePosixPath
from types import ModuleType

import pytest
from support.asgi import ask

from engine_router import open_router
from engine_router.config import parse_config
from engine_router.web import assets

PROJECT = Path(__file__).parents[1]
LOCK = PROJECT / "engine_router/web/ui/package-lock.json"
CONFIG = parse_config(
    """
    state_file = "/dev/null/state.json"
    [pools.default]
    gauge = "none"
    [engines.a]
    type = "http"
    base_url = "http://127.0.0.1:9"
    models = ["m"]
    unload.path = "/unload"
    loaded.path = "/loaded"
    """
)
HTML = {"accept": "text/html,*/*;q=0.8"}
SCRIPT = b"export const text = 'a script';" * 9


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page as `build.mjs` leaves it."""
    files = tmp_path / "page" / "assets"
    files.mkdir(parents=True)
    (files / "main-ABCDEFG2.js").write_bytes(SCRIPT)
    (files / "main-ABCDEFG2.js.gz").write_bytes(gzip.compress(SCRIPT))
    (files.parent / "secret.js").write_text("not an asset")
    template = (PROJECT / "engine_router/web/ui/index.html").read_text("utf-8")
    names = {"{main}": "main-ABCDEFG2.js", "{style}": "style-ABCDEFG3.css", "{preloads}": ""}
    for name, value in names.items():
        assert name in template
        template = template.replace(name, value)
    (files.parent / "index.html").write_text(template)
    monkeypatch.setattr(assets, "PAGE", files.parent)
    return files.parent


@pytest.mark.parametrize("is_built", [True, False])
async def test_the_greeting_and_the_page(page: Path, is_built: bool) -> None:
    if not is_built:
        shutil.rmtree(page)
    async with open_router(CONFIG) as router:
        assert (await ask(router.app, "GET", "/")).body == b"Ollama is running"
        head = await ask(router.app, "HEAD", "/")
        assert (head.status, head.error) == (200, None)
        nonces = set()
        for _ in range(2):
            answer = await ask(router.app, "GET", "/", headers=HTML)
            assert answer.headers["content-type"] == "text/html; charset=utf-8"
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            (nonce,) = set(re.findall(r"'nonce-([^']+)'", policy))
            nonces.add(nonce)
            text = answer.body.decode()
            assert ("main-ABCDEFG2.js" in text) == is_built
            # Whoever sees the plain page learns that there is another, and how to get it.
            assert ("stands in for the full one" in text) != is_built
            assert ("npm run build" in text) != is_built
            tags = re.findall(r"<(?:script|style|link rel=.(?:stylesheet|modulepreload))[^>]*>", text)
            assert tags
            assert all(f'nonce="{nonce}"' in tag for tag in tags)
            assert not re.search(r"""\son\w+=|style=|(src|href)=["']?(https?:)?//|\.innerHTML""", text)
        assert len(nonces) == 2


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/ui/main-ABCDEFG2.js", 200),
        ("GET", "/ui/nothing.js", 404),
        ("GET", "/admin/requests", 200),
        ("GET", "/admin/activity.csv", 200),
        ("GET", "/admin/nothing", 404),
        ("POST", "/admin/load", 400),
        ("PUT", "/admin/session", 405),
    ],
)
async def test_a_browser_is_told_to_make_nothing_else_of_the_routers_answers(
    page: Path, method: str, path: str, status: int
) -> None:
    async with open_router(CONFIG) as router:
        for headers in ({}, HTML):
            answer = await ask(router.app, method, path, headers=headers)
            assert answer.status == status
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "same-origin"
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        # What may be an engine's answer is not touched, nor is what clients ask.
        listed = await ask(router.app, "GET", "/v1/models")
        assert not {"content-security-policy", "referrer-policy"} & set(listed.headers)


async def test_a_file_of_the_page_is_kept_for_good(page: Path) -> None:
    async with open_router(CONFIG) as router:
        plain = await ask(router.app, "GET", "/ui/main-ABCDEFG2.js")
        packed = await ask(router.app, "GET", "/ui/main-ABCDEFG2.js", headers={"accept-encoding": "br, gzip"})
        assert plain.body == SCRIPT
        assert gzip.decompress(packed.body) == SCRIPT
        assert packed.headers["content-encoding"] == "gzip"
        for answer in (plain, packed):
            assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["vary"].lower() == "accept-encoding"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "main-ABCDEFG3.js",
        "secret.js",
        "../secret.js",
        "..%2fsecret.js",
        "main-ABCDEFG2.js.gz",
        "index.html",
        "a\0b",
    ],
)
async def test_nothing_else_is_a_file_of_the_page(page: Path, name: str) -> None:
    async with open_router(CONFIG) as router:
        assert (await ask(router.app, "GET", f"/ui/{name}")).status == 404


# The build hook.


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("build_page", PROJECT / "scripts/build_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delenv(module.SKIP, raising=False)
    return module


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the page's sources, without what they need."""
    ui = PROJECT / "engine_router/web/ui"
    ignored = shutil.ignore_patterns("node_modules")
    shutil.copytree(ui, tmp_path / "engine_router/web/ui", ignore=ignored)
    return tmp_path


def test_the_page_is_built_when_its_sources_have_changed(
    hook: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, page = hook.folders(project)
    assert hook.is_wanted(project)
    page.mkdir()
    (page / hook.STAMP).write_text(hook.stamp(sources))
    assert not hook.is_wanted(project)
    (sources / "src/views/new.tsx").write_text("export default 1;")
    assert hook.is_wanted(project)
    monkeypatch.setenv(hook.SKIP, "1")
    assert not hook.is_wanted(project)


def test_without_node_the_installation_says_so_and_goes_on(
    hook: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook.sysconfig, "get_path", lambda _: str(project))
    monkeypatch.setenv("PATH", str(project))
    assert "no Node of version 20 or newer" in hook.build(project)
    for name, line in (("node", "echo v18.20.0"), ("npm", "exit 1")):
        (project / name).write_text(f"#!/bin/sh\n{line}\n")
        (project / name).chmod(stat.S_IRWXU)
    assert "no Node of version 20 or newer" in hook.build(project)
    (project / "node").write_text("#!/bin/sh\necho v20.1.0\n")
    (project / "npm").write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
    problem = hook.build(project)
    assert "ci --omit=dev" in problem
    assert problem.endswith("no network")
    assert hook.is_wanted(project)


def test_the_lock_names_no_place_to_download_from() -> None:
    text = LOCK.read_text("utf-8")
    assert '"integrity"' in text
    assert "resolved" not in text


def test_the_lock_has_all_that_its_packages_need() -> None:
    packages = json.loads(LOCK.read_text("utf-8"))["packages"]
    wanted = json.loads(LOCK.with_name("package.json").read_text("utf-8"))
    for kind in ("dependencies", "devDependencies"):
        assert packages[""][kind] == wanted[kind]
    for place, package in packages.items():
        for name in {**package.get("dependencies", {}), **package.get("optionalDependencies", {})}:
            around = [place, *map(str, PurePosixPath(place).parents), ""]
            assert any(
                f"{folder}/node_modules/{name}".removeprefix("/").removeprefix("./") in packages
                for folder in around
            ), f"{place} needs {name}: npm ci would refuse the lock"
