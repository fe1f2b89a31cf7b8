"""Downloads from a hub that redirects, breaks off, lies, is busy, or wants a token; and the cache that they leave."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
from support.hub_server import COMMIT, Fault, HubServer, git_id

from engine_router.errors import (
    BadRequest,
    CorruptDownload,
    DiskFull,
    HubError,
    HubForbidden,
    HubOffline,
    HubUnreachable,
    NotOnHub,
)
from engine_router.models.hub import client
from engine_router.models.hub.cache import FileLock, RepoCache
from engine_router.models.hub.choice import RepoFile
from engine_router.models.hub.connections import dial, is_nearby
from engine_router.models.hub.fetch import RetryPolicy
from engine_router.models.hub.progress import Progress
from engine_router.models.hub.pull import Pulled, Puller, PullRequest
from engine_router.models.hub.settings import HubSettings

REPO = "user/Tiny-GGUF"
QUICK = RetryPolicy(tries=4, first_s=0.01, longest_s=0.02)
WEIGHTS = random.Random(1).randbytes(700_001)
PROJECTOR = random.Random(2).randbytes(90_000)
SMALL = b'{"architectures": ["LlamaForCausalLM"]}'


@pytest.fixture
def hub() -> Iterator[HubServer]:
    server = HubServer()
    server.add(
        REPO, {"tiny-Q4_K_M.gguf": WEIGHTS, "tiny-Q8_0.gguf": WEIGHTS[::-1], "mmproj-F16.gguf": PROJECTOR}
    )
    server.add(REPO, {"README.md": b"# Tiny"}, in_git=True)
    with server.running():
        yield server


@pytest.fixture
def environ(tmp_path: Path, hub: HubServer) -> dict[str, str]:
    return {
        "HOME": str(tmp_path),
        "USERPROFILE": str(tmp_path),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": hub.url,
    }


def puller(environ: Mapping[str, str], **options: Any) -> Puller:
    return Puller(settings=lambda: HubSettings.from_environment(environ), **{"retries": QUICK, **options})


async def pull(environ: Mapping[str, str], name: str = f"hf:{REPO}", **options: Any) -> Pulled:
    request = PullRequest(
        name=name, **{key: options.pop(key) for key in ("revision", "with_projector", "to") if key in options}
    )
    with trio.fail_after(60):
        return await puller(environ, **options).pull(request, Progress(name))


def repo_cache(environ: Mapping[str, str], repo: str = REPO) -> RepoCache:
    return RepoCache(Path(environ["HF_HOME"]) / "hub", repo)


def blob_of(environ: Mapping[str, str], data: bytes) -> Path:
    return repo_cache(environ).blobs / hashlib.sha256(data).hexdigest()


async def test_a_model_and_its_projector_come_into_the_hubs_own_cache(
    hub: HubServer, environ: dict[str, str]
) -> None:
    pulled = await pull(environ)
    cache = repo_cache(environ)
    assert pulled.name == f"hf:{REPO}:Q4_K_M"
    assert pulled.served_as == f"{REPO}:Q4_K_M"
    assert pulled.path == cache.snapshot(COMMIT) / "tiny-Q4_K_M.gguf"
    assert pulled.path.read_bytes() == WEIGHTS
    assert pulled.mmproj is not None
    assert pulled.mmproj.read_bytes() == PROJECTOR
    assert pulled.path.readlink() == Path(f"../../blobs/{hashlib.sha256(WEIGHTS).hexdigest()}")
    assert (cache.folder / "refs" / "main").read_text() == COMMIT
    assert sorted(path.name for path in cache.blobs.iterdir()) == sorted(
        hashlib.sha256(data).hexdigest() for data in (WEIGHTS, PROJECTOR)
    )
    assert pulled.fetched_bytes == pulled.size_bytes == len(WEIGHTS) + len(PROJECTOR)
    hub.requests.clear()
    again = await pull(environ)
    assert again.fetched_bytes == 0
    assert [path for path in hub.asked() if "resolve" in path] == []


async def test_the_hubs_own_library_finds_it(hub: HubServer, environ: dict[str, str]) -> None:
    library = pytest.importorskip("huggingface_hub")
    hub.add("user/safe", {"model.safetensors": WEIGHTS})
    hub.add("user/safe", {"config.json": SMALL, "sub/tokenizer.json": b"{}"}, in_git=True)
    await pull(environ)
    await pull(environ, "hf:user/safe")
    root = repo_cache(environ).root
    found = library.try_to_load_from_cache(REPO, "tiny-Q4_K_M.gguf", cache_dir=root)
    assert Path(found).read_bytes() == WEIGHTS
    folder = library.snapshot_download("user/safe", local_files_only=True, cache_dir=root)
    assert (Path(folder) / "config.json").read_bytes() == SMALL
    listed = library.scan_cache_dir(root)
    assert not listed.warnings
    assert {repo.repo_id: repo.size_on_disk for repo in listed.repos} == {
        REPO: len(WEIGHTS) + len(PROJECTOR),
        "user/safe": len(WEIGHTS) + len(SMALL) + 2,
    }
    hub.requests.clear()
    again = library.hf_hub_download(REPO, "tiny-Q4_K_M.gguf", cache_dir=root, endpoint=hub.url)
    assert again == found
    assert hub.asked("cdn") == []


async def test_what_the_hubs_own_library_has_fetched_is_not_fetched_again(
    hub: HubServer, environ: dict[str, str]
) -> None:
    library = pytest.importorskip("huggingface_hub")
    root = repo_cache(environ).root
    await trio.to_thread.run_sync(
        lambda: library.hf_hub_download(REPO, "tiny-Q4_K_M.gguf", cache_dir=root, endpoint=hub.url)
    )
    hub.sent.clear()
    assert (await pull(environ, with_projector=False)).fetched_bytes == 0
    assert not hub.sent


async def test_a_safetensors_repository_comes_whole_with_gits_own_hashes(
    hub: HubServer, environ: dict[str, str]
) -> None:
    hub.add("user/safe", {"model.safetensors": WEIGHTS, "pytorch_model.bin": WEIGHTS})
    hub.add("user/safe", {"config.json": SMALL, "empty.txt": b""}, in_git=True)
    pulled = await pull(environ, "hf:user/safe")
    assert pulled.path == repo_cache(environ, "user/safe").snapshot(COMMIT)
    assert sorted(path.name for path in pulled.path.iterdir()) == [
        "config.json",
        "empty.txt",
        "model.safetensors",
    ]
    assert (repo_cache(environ, "user/safe").blobs / git_id(SMALL)).read_bytes() == SMALL
    hub.faults["config.json"] = [Fault(content=SMALL[::-1])] * 3
    hub.add("user/safe", {"config.json": b'{"other": 1234567890123456789012345678}'}, in_git=True)
    hub.commit = COMMIT[::-1]
    with pytest.raises(CorruptDownload, match="another hash"):
        await pull(environ, "hf:user/safe")


async def test_a_broken_download_goes_on_where_it_broke_off(hub: HubServer, environ: dict[str, str]) -> None:
    hub.faults["tiny-Q4_K_M.gguf"] = [
        Fault(cut_after=200_000),
        Fault(cut_after=0),
        Fault(status=503),
        Fault(cut_after=100_000),
    ]
    pulled = await pull(environ, with_projector=False)
    assert pulled.path.read_bytes() == WEIGHTS
    assert hub.sent["tiny-Q4_K_M.gguf"] < len(WEIGHTS) + 2 * 65536
    ranges = [headers["range"] for server, _, headers in hub.requests if server == "cdn"]
    assert ranges[0] == f"bytes=0-{len(WEIGHTS) - 1}"
    assert len({*ranges}) >= 3
    conditions = [headers.get("if-range") for server, _, headers in hub.requests if server == "cdn"]
    assert conditions[0] is None
    assert set(conditions[1:]) == {f'"{hashlib.md5(WEIGHTS).hexdigest()}"'}


async def test_the_next_run_goes_on_with_what_the_last_one_left(
    hub: HubServer, environ: dict[str, str]
) -> None:
    hub.faults["tiny-Q4_K_M.gguf"] = [Fault(cut_after=500_000)] + [Fault(status=500)] * QUICK.tries
    with pytest.raises(HubUnreachable, match="500"):
        await pull(environ, with_projector=False)
    partial = blob_of(environ, WEIGHTS).with_name(f"{hashlib.sha256(WEIGHTS).hexdigest()}.incomplete")
    left = partial.stat().st_size
    assert 0 < left <= 500_000
    assert not (repo_cache(environ).folder / "refs").exists()
    pulled = await pull(environ, with_projector=False)
    assert pulled.path.read_bytes() == WEIGHTS
    assert pulled.fetched_bytes == len(WEIGHTS) - left
    assert not partial.exists()


@pytest.mark.parametrize(
    "left", [WEIGHTS[:300_000], b"\0" * 300_000, WEIGHTS, b"x" * len(WEIGHTS), WEIGHTS + b"more"]
)
async def test_whatever_lies_there_of_an_earlier_try_the_hash_is_right(
    hub: HubServer, environ: dict[str, str], left: bytes
) -> None:
    blob = blob_of(environ, WEIGHTS)
    blob.parent.mkdir(parents=True)
    blob.with_name(f"{blob.name}.incomplete").write_bytes(left)
    pulled = await pull(environ, with_projector=False)
    assert pulled.path.read_bytes() == WEIGHTS
    if WEIGHTS.startswith(left):
        assert pulled.fetched_bytes == len(WEIGHTS) - len(left)
    else:
        assert pulled.fetched_bytes <= 2 * len(WEIGHTS)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(no_range=True),
        Fault(shifted=True),
        Fault(status=416, headers={"Content-Range": "bytes */5"}),
        Fault(status=429, headers={"Retry-After": "0"}),
        Fault(status=503, headers={"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}),
        Fault(status=502, body=b"<html>"),
        Fault(content=WEIGHTS[:-1]),
    ],
    ids=lambda fault: str(
        fault.status or next(name for name in ("no_range", "shifted", "content") if getattr(fault, name))
    ),
)
async def test_a_server_that_fails_in_the_middle_costs_time_and_nothing_else(
    hub: HubServer, environ: dict[str, str], fault: Fault
) -> None:
    hub.faults["tiny-Q4_K_M.gguf"] = [Fault(cut_after=300_000), fault]
    hub.cdn_etag = False
    try:
        pulled = await pull(environ, with_projector=False)
    except HubError:
        pulled = await pull(environ, with_projector=False)
    assert pulled.path.read_bytes() == WEIGHTS


async def test_a_file_that_changed_meanwhile_is_begun_anew(hub: HubServer, environ: dict[str, str]) -> None:
    hub.faults["tiny-Q4_K_M.gguf"] = [Fault(content=WEIGHTS[::-1], cut_after=300_000)]
    pulled = await pull(environ, with_projector=False)
    assert pulled.path.read_bytes() == WEIGHTS


async def test_another_file_than_was_listed_is_noticed_at_once(
    hub: HubServer, environ: dict[str, str]
) -> None:
    hub.faults["tiny-Q4_K_M.gguf"] = [Fault(etag="f" * 64)]
    with pytest.raises(HubError, match="another file now"):
        await pull(environ, with_projector=False)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(content=WEIGHTS[::-1]), CorruptDownload),
        (Fault(content=WEIGHTS + b"more", no_range=True), CorruptDownload),
        (Fault(content=WEIGHTS[:-5], no_range=True), CorruptDownload),
        (Fault(status=400, body=b"no"), HubError),
        (Fault(status=503, headers={"Retry-After": "86400"}), HubUnreachable),
        (Fault(status=404), NotOnHub),
    ],
)
async def test_wrong_bytes_are_never_kept(
    hub: HubServer, environ: dict[str, str], fault: Fault, error: type[Exception]
) -> None:
    hub.faults["tiny-Q4_K_M.gguf"] = [fault] * 4
    with pytest.raises(error):
        await pull(environ, with_projector=False)
    assert not blob_of(environ, WEIGHTS).exists()
    assert not repo_cache(environ).snapshot(COMMIT).exists()


async def test_a_connection_on_which_nothing_comes_is_given_up(
    hub: HubServer, environ: dict[str, str]
) -> None:
    hub.faults["tiny-Q4_K_M.gguf"] = [Fault(stall_after=65536)]
    pulled = await pull(environ, with_projector=False, quiet_s=0.5)
    assert pulled.path.read_bytes() == WEIGHTS


async def test_the_token_goes_to_the_hub_and_nowhere_else(hub: HubServer, environ: dict[str, str]) -> None:
    hub.gated.add(REPO)
    hub.tokens.add("hf_good")
    with pytest.raises(
        HubForbidden, match=r"accept the terms at http://127.0.0.1:\d+/user/Tiny-GGUF, then set HF_TOKEN, or "
    ):
        await pull(environ)
    token = Path(environ["HF_HOME"]) / "token"
    token.parent.mkdir(parents=True, exist_ok=True)
    token.write_text("hf_good\n")
    hub.requests.clear()
    await pull(environ)
    for server, path, headers in hub.requests:
        assert headers.get("authorization") == ("Bearer hf_good" if server == "hub" else None), path
    assert {server for server, _, _ in hub.requests} == {"hub", "cdn"}
    with pytest.raises(HubForbidden, match="account of your token"):
        await pull({**environ, "HF_TOKEN": "hf_other"}, f"hf:{REPO}:Q8_0")


async def test_what_is_private_or_not_there_says_so(hub: HubServer, environ: dict[str, str]) -> None:
    hub.private.add(REPO)
    with pytest.raises(HubForbidden, match="no such repository, or it is private"):
        await pull(environ)
    hub.private.clear()
    with pytest.raises(HubForbidden, match="no such repository"):
        await pull(environ, "hf:user/nothing")
    with pytest.raises(NotOnHub, match="the revision is not there"):
        await pull(environ, revision="v9")
    with pytest.raises(NotOnHub, match=r"has no file 'tiny-Q4_K_S.gguf'; did you mean tiny-Q4_K_M.gguf"):
        await pull(environ, f"hf:{REPO}/tiny-Q4_K_S.gguf")
    with pytest.raises(BadRequest, match="token"):
        await pull({**environ, "HF_TOKEN": "a b"})


async def test_a_hub_that_is_busy_with_its_list_is_asked_again(
    hub: HubServer, environ: dict[str, str]
) -> None:
    hub.listing_faults = [
        Fault(status=429, headers={"Retry-After": "0"}),
        Fault(status=503, headers={"Retry-After": "0"}),
    ]
    assert (await pull(environ)).fetched_bytes
    hub.listing_faults = [Fault(status=200, body=b"<html>a portal</html>")]
    with pytest.raises(HubError, match="does not answer as a hub does"):
        await pull(environ)
    hub.listing_faults = [Fault(status=429, headers={"Retry-After": "3600"})]
    with pytest.raises(HubUnreachable, match="too many requests"):
        await pull(environ)


async def test_nothing_is_asked_where_downloads_are_forbidden_or_nobody_is_there(
    hub: HubServer, environ: dict[str, str]
) -> None:
    with pytest.raises(HubOffline, match="HF_HUB_OFFLINE is set"):
        await pull({**environ, "HF_HUB_OFFLINE": "1"})
    assert hub.requests == []
    with pytest.raises(HubUnreachable, match="connection refused"):
        await pull({**environ, "HF_ENDPOINT": "http://127.0.0.1:9"})
    with pytest.raises(BadRequest, match="HF_ENDPOINT is no URL"):
        await pull({**environ, "HF_ENDPOINT": "huggingface.co"})


async def test_nobody_nearby_is_told_at_once(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    async def counted(url: str) -> socket.socket:
        tried.append(url)
        return await dial(url)

    monkeypatch.setattr(client, "dial", counted)
    with socket.socket() as taken:  # it does not listen, and nobody else can
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(HubUnreachable, match=r"nothing listens at .*start its server"):
            await pull(environ, name=f"{nobody}/model.gguf", to=str(tmp_path))
        with pytest.raises(HubUnreachable, match="nothing listens at"):
            await pull({**environ, "HF_ENDPOINT": nobody})
        assert len(tried) == 2  # once each


@pytest.mark.parametrize(
    ("host", "is_near"),
    [
        ("localhost", True), ("nas", True), ("nas.local", True), ("192.168.1.9", True), ("fe80::1", True),
        ("huggingface.co", False), ("8.8.8.8", False),
    ],
)  # fmt: skip
def test_what_is_nearby(host: str, is_near: bool) -> None:
    assert is_nearby(host) is is_near


async def test_a_revision_gets_its_own_name(hub: HubServer, environ: dict[str, str]) -> None:
    await pull(environ, revision="v1")
    assert (repo_cache(environ).folder / "refs" / "v1").read_text() == COMMIT
    await pull(environ, revision=COMMIT)
    assert [path.name for path in (repo_cache(environ).folder / "refs").iterdir()] == ["v1"]


async def test_the_hubs_own_capital_letters_name_the_folder(hub: HubServer, environ: dict[str, str]) -> None:
    pulled = await pull(environ, "hf:USER/tiny-gguf:q4_k_m")
    assert pulled.name == f"hf:{REPO}:Q4_K_M"
    assert repo_cache(environ).folder.is_dir()


async def test_without_links_the_file_itself_lies_in_the_snapshot(
    hub: HubServer, environ: dict[str, str]
) -> None:
    environ["HF_HUB_DISABLE_SYMLINKS"] = "1"
    pulled = await pull(environ)
    assert not pulled.path.is_symlink()
    assert pulled.path.read_bytes() == WEIGHTS
    assert not list(repo_cache(environ).blobs.iterdir())
    assert (await pull(environ)).fetched_bytes == 0


async def test_without_links_files_with_the_same_bytes_are_all_there(
    hub: HubServer, environ: dict[str, str]
) -> None:
    environ["HF_HUB_DISABLE_SYMLINKS"] = "1"
    hub.add("user/twice", {"model.safetensors": WEIGHTS, "other.safetensors": WEIGHTS})
    hub.add("user/twice", {"a.txt": b"", "b.txt": b"", "config.json": SMALL}, in_git=True)
    pulled = await pull(environ, "hf:user/twice")
    assert {path.name: path.stat().st_size for path in pulled.path.iterdir()} == {
        "model.safetensors": len(WEIGHTS), "other.safetensors": len(WEIGHTS), "a.txt": 0, "b.txt": 0, "config.json": len(SMALL),
    }  # fmt: skip
    assert not list(repo_cache(environ, "user/twice").blobs.iterdir())


async def test_paths_that_lead_elsewhere_are_left_out(hub: HubServer, environ: dict[str, str]) -> None:
    hub.add(
        "user/evil",
        {"../../../evil-Q4_K_M.gguf": WEIGHTS, "/abs-Q8_0.gguf": WEIGHTS, "C:\\x-Q6_K.gguf": WEIGHTS},
    )
    with pytest.raises(NotOnHub):
        await pull(environ, "hf:user/evil")


# Room on the disk.


async def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(
    hub: HubServer, environ: dict[str, str]
) -> None:
    with pytest.raises(
        DiskFull, match=r"0\.8 MB are to be fetched, and the disk of .* has 0\.5 MB free.*HF_HOME"
    ):
        await pull(environ, usage=lambda _: (500_000, 10_000_000))
    assert hub.asked("cdn") == []


async def test_a_disk_that_fills_up_ends_the_download_before_it_is_full(
    hub: HubServer, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine_router.models.hub.partial.LOOK_BYTES", 100_000)
    monkeypatch.setattr("engine_router.models.hub.transfer.WRITE_BYTES", 1)
    free = iter([10_000_000, 10_000_000, 400_000])
    with pytest.raises(DiskFull, match="almost full"):
        await pull(environ, usage=lambda _: (next(free, 400_000), 10_000_000), with_projector=False)
    partial = blob_of(environ, WEIGHTS).with_name(f"{hashlib.sha256(WEIGHTS).hexdigest()}.incomplete")
    assert 0 < partial.stat().st_size < len(WEIGHTS)
    pulled = await pull(environ, with_projector=False)
    assert pulled.path.read_bytes() == WEIGHTS


@pytest.mark.skipif(sys.platform == "win32", reason="a limit of the system's that Windows does not have")
async def test_a_write_that_fails_says_why(
    hub: HubServer, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine_router.models.hub.partial.os.write", write)
    with pytest.raises(DiskFull, match="is full; what was fetched stays"):
        await pull(environ, with_projector=False)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere")
async def test_a_cache_that_cannot_be_written_says_so(hub: HubServer, environ: dict[str, str]) -> None:
    Path(environ["HF_HOME"]).mkdir(mode=0o500)
    with pytest.raises(HubError, match="cannot be used"):
        await pull(environ)


async def test_a_file_in_the_place_of_the_cache_says_so(hub: HubServer, environ: dict[str, str]) -> None:
    Path(environ["HF_HOME"]).write_text("")
    with pytest.raises(HubError, match="cannot be used"):
        await pull(environ)


# Others at the same time.


async def test_two_downloads_of_the_same_file_take_turns(hub: HubServer, environ: dict[str, str]) -> None:
    outcomes: list[int] = []

    async def one() -> None:
        outcomes.append((await pull(environ, with_projector=False)).fetched_bytes)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        nursery.start_soon(one)
    assert sorted(outcomes) == [0, len(WEIGHTS)]


async def test_the_lock_is_the_one_of_the_hubs_own_library(hub: HubServer, environ: dict[str, str]) -> None:
    filelock = pytest.importorskip("filelock")
    cache = repo_cache(environ)
    path = cache.lock(RepoFile("x", 1, hashlib.sha256(WEIGHTS).hexdigest()))
    path.parent.mkdir(parents=True)
    progress = Progress("x")
    lock = filelock.FileLock(path)
    lock.acquire()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(puller(environ).pull, PullRequest(name=f"hf:{REPO}"), progress)
        with trio.fail_after(30):
            while "another program is fetching" not in progress.note:
                await trio.sleep(0.01)
        lock.release()
    assert progress.step == "done"
    ours = FileLock(path)
    assert ours.try_lock()
    with pytest.raises(filelock.Timeout):
        filelock.FileLock(path).acquire(timeout=0)
    ours.release()
    filelock.FileLock(path).acquire(timeout=0)


async def test_a_cancelled_download_closes_its_connection_and_leaves_what_it_has(
    hub: HubServer, environ: dict[str, str]
) -> None:
    hub.faults["tiny-Q4_K_M.gguf"] = [Fault(stall_after=200_000)]
    progress = Progress("x")
    with trio.fail_after(30), trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(puller(environ).pull, PullRequest(name=f"hf:{REPO}"), progress)
            while progress.done_bytes < 200_000:
                await trio.sleep(0.01)
            scope.cancel()
    assert scope.cancelled_caught
    hub.sent.clear()
    assert (await pull(environ, with_projector=False)).path.read_bytes() == WEIGHTS
    assert hub.sent["tiny-Q4_K_M.gguf"] == len(WEIGHTS) - 200_000


# Plain URLs.


async def test_a_file_from_a_plain_url_goes_into_llama_cpps_cache(
    hub: HubServer, environ: dict[str, str], tmp_path: Path
) -> None:
    environ["LLAMA_CACHE"] = str(tmp_path / "llama")
    url = f"{hub.cdn_url}/user--Tiny-GGUF/tiny-Q4_K_M.gguf?Signature=secret"
    pulled = await pull(environ, url)
    assert pulled.path == tmp_path / "llama" / "tiny-Q4_K_M.gguf"
    assert pulled.path.read_bytes() == WEIGHTS
    assert pulled.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert "secret" not in str(pulled.as_dict())
    assert [path.name for path in pulled.path.parent.iterdir()] == ["tiny-Q4_K_M.gguf"]
    assert (await pull(environ, url)).fetched_bytes == 0


@pytest.mark.parametrize("has_etag", [True, False])
async def test_a_plain_url_is_resumed_only_if_it_is_the_same_file(
    hub: HubServer, environ: dict[str, str], tmp_path: Path, *, has_etag: bool
) -> None:
    hub.cdn_etag = has_etag
    url = f"{hub.cdn_url}/user--Tiny-GGUF/tiny-Q4_K_M.gguf"
    broken = [Fault(cut_after=300_000), *[Fault(status=500)] * QUICK.tries]
    hub.faults["tiny-Q4_K_M.gguf"] = [*broken]
    with pytest.raises(HubUnreachable):
        await pull(environ, url, to=str(tmp_path))
    hub.sent.clear()
    assert (await pull(environ, url, to=str(tmp_path))).path.read_bytes() == WEIGHTS
    assert hub.sent["tiny-Q4_K_M.gguf"] < len(WEIGHTS) - 200_000
    (tmp_path / "tiny-Q4_K_M.gguf").unlink()
    hub.faults["tiny-Q4_K_M.gguf"] = [*broken]
    with pytest.raises(HubUnreachable):
        await pull(environ, url, to=str(tmp_path))
    other = WEIGHTS[::-1] if has_etag else WEIGHTS[::-1] + b"longer"
    hub.repos[REPO]["tiny-Q4_K_M.gguf"] = other
    assert (await pull(environ, url, to=str(tmp_path))).path.read_bytes() == other


async def test_every_part_of_a_split_model_comes_from_a_plain_url(
    hub: HubServer, environ: dict[str, str], tmp_path: Path
) -> None:
    parts = {f"m-Q8_0-{n:05d}-of-00003.gguf": bytes([n]) * 1000 for n in (1, 2, 3)}
    hub.add("user/split", parts)
    pulled = await pull(environ, f"{hub.cdn_url}/user--split/m-Q8_0-00002-of-00003.gguf", to=str(tmp_path))
    assert list(pulled.files) == sorted(parts)
    assert pulled.path.name == "m-Q8_0-00001-of-00003.gguf"
    assert all((tmp_path / name).read_bytes() == data for name, data in parts.items())


async def test_a_folder_goes_with_a_plain_url_only(environ: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(HubError, match="go into its cache"):
        await pull(environ, to=str(tmp_path))


# The loop.


async def test_the_loop_is_never_held_for_long(hub: HubServer, environ: dict[str, str]) -> None:
    """What is counted is not time but work: no read, hash or write is done by the loop's own thread."""
    thread = __import__("threading").get_ident()
    used: list[str] = []

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if __import__("threading").get_ident() == thread:
                used.append(name)
            return real(*arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "write", "read", "fsync", "ftruncate", "lseek"):
            patch.setattr(f"engine_router.models.hub.partial.os.{name}", watched(name, getattr(os, name)))
        await pull(environ)
    assert used == []


async def test_the_speed_and_the_time_left_are_reason_of(autojump_clock: trio.testing.MockClock) -> None:
    progress = Progress("x")
    progress.begin({"a": ("", 1000)})
    progress.enter("downloading")
    assert progress.speed() is None
    for _ in range(5):
        progress.parts["a"].done_bytes += 100
        progress.fetched(100)
        await trio.sleep(1)
    assert progress.speed() == pytest.approx(80)
    assert progress.left_s() == pytest.approx(500 / 80)
    assert progress.as_dict()["done_bytes"] == 500
    progress.enter("paused", "x is starting")
    assert progress.left_s() is None
