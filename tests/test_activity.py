"""Past requests: filters, order, pages, and CSV that no spreadsheet takes for formulas."""

import csv
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from support.asgi import ask
from test_history import Kept, ended, routing

from engine_router.errors import BadRequest
from engine_router.telemetry import activity
from engine_router.telemetry.histogram import histogram, histograms

LIMIT_S = 100.0


async def page(kept: Kept, *, limit: int = 50, offset: int = 0, **wanted: Any) -> dict[str, Any]:
    order = {name: wanted.pop(name) for name in ("sort", "descending") if name in wanted}
    return await activity.listed(
        kept.of,
        activity.where_of(wanted),
        limit=limit,
        offset=offset,
        has_capture=lambda id_, at: id_ == "r3",
        **order,
    )


def ids(answer: dict[str, Any]) -> list[str]:
    return [entry["id"] for entry in answer["requests"]]


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[Kept]:
    kept = Kept(tmp_path / "history.db")
    for event in (
        ended(1, model="a", key="laptop", tokens_out=10, client="10.0.0.1"),
        ended(2, model="b", status=404, error="no model is called 'b'", engine=None),
        ended(3, model="a", tokens_out=30, first_token_s=0.25, first_byte_s=0.1, path="/v1/embeddings"),
        ended(4, model="a%_\\", status=200, error="it broke off", tokens_out=20, first_byte_s=0.5),
        ended(5, model="' OR 1 --", status=499),
    ):
        kept.hub.publish(event)
    yield kept
    await kept.of.close()


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, [5, 4, 3, 2, 1]),
        ({"model": "a"}, [3, 1]),
        ({"model": ""}, [5, 4, 3, 2, 1]),
        ({"model": "' OR 1 --"}, [5]),
        ({"engine": "e", "status": "ok"}, [3, 1]),
        ({"status": "error"}, [5, 4, 2]),
        ({"status": "404"}, [2]),
        ({"key": "laptop"}, [1]),
        ({"client": "10.0.0.1"}, [1]),
        ({"endpoint": "/v1/embeddings"}, [3]),
        ({"since": "1700000002", "until": "1700000004.0"}, [3, 2]),
        ({"q": "EMBED"}, [3]),
        ({"q": "%"}, [4]),
        ({"q": "_"}, [4]),
        ({"q": "\\"}, [4]),
        ({"q": "broke"}, [4]),
        ({"q": "\ud800"}, []),
    ],
)
async def test_filters(kept: Kept, wanted: dict[str, str], found: list[int]) -> None:
    answer = await page(kept, **wanted)
    assert ids(answer) == [f"r{number}" for number in found]
    assert answer["total"] == len(found)


async def test_the_order_puts_what_is_not_known_at_the_end(kept: Kept) -> None:
    assert ids(await page(kept, sort="tokens_out")) == ["r3", "r4", "r1", "r5", "r2"]
    assert ids(await page(kept, sort="tokens_out", descending=False)) == ["r1", "r4", "r3", "r2", "r5"]
    assert ids(await page(kept, descending=False, limit=2, offset=1)) == ["r2", "r3"]
    for column in activity.SORTED_BY:
        assert len(ids(await page(kept, sort=column))) == 5


async def test_every_field(kept: Kept) -> None:
    third, fourth = (await page(kept))["requests"][2], (await page(kept))["requests"][1]
    assert set(activity.COLUMNS) | {"row", "has_capture"} == set(third)
    assert (third["first_token_s"], fourth["first_token_s"]) == (0.25, None)
    assert (third["has_capture"], fourth["has_capture"]) == (True, False)
    assert third["tokens_in"] is None


@pytest.mark.parametrize(
    "wanted",
    [
        {"status": "okay"},
        {"status": "20"},
        {"status": "²00"},
        {"since": "now"},
        {"until": "nan"},
        {"since": "-1"},
    ],
)
def test_what_cannot_be_meant_is_refused(wanted: dict[str, str]) -> None:
    with pytest.raises(BadRequest):
        activity.where_of(wanted)


async def test_a_column_that_is_none_is_no_way_into_the_database(kept: Kept) -> None:
    for sort in ("row; DROP TABLE requests", "error", ""):
        with pytest.raises(BadRequest):
            await page(kept, sort=sort)


async def test_ten_thousand_requests_in_pages(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "history.db")
    for number in range(10_000):
        kept.hub.publish(ended(number, model=f"m{number % 7}", duration_s=float(number * 7919 % 10_007)))
    with trio.fail_after(LIMIT_S):
        seen = [
            name
            for offset in range(0, 10_000, 500)
            for name in ids(await page(kept, limit=500, offset=offset))
        ]
        assert seen == [f"r{number}" for number in reversed(range(10_000))]
        slowest = await page(kept, sort="duration_s", model="m3", limit=3)
        assert slowest["total"] == len(range(3, 10_000, 7))
        durations = [entry["duration_s"] for entry in slowest["requests"]]
        assert durations == sorted((n * 7919 % 10_007 for n in range(3, 10_000, 7)), reverse=True)[:3]
        pieces = [piece async for piece in activity.as_csv(kept.of, activity.where_of({}))]
        assert len(pieces) == 11
        rows = [*csv.DictReader(io.StringIO(b"".join(pieces).decode()))]
        assert [row["id"] for row in rows] == seen
    await kept.of.close()


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =1", '=cmd|"/C calc"!A0']


async def test_csv_has_no_formulas(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "history.db")
    for number, text in enumerate(FORMULAS):
        kept.hub.publish(ended(number, model=text, error=text, client=text))
    kept.hub.publish(ended(99, model='a,"b"\nc', error=None, tokens_out=5))
    text = b"".join([piece async for piece in activity.as_csv(kept.of, activity.where_of({}))]).decode()
    await kept.of.close()
    last, *others = csv.DictReader(io.StringIO(text, newline=""))
    assert (last["model"], last["tokens_out"], last["tokens_in"], last["error"]) == ('a,"b"\nc', "5", "", "")
    assert last["time"] == "2023-11-14T22:14:59Z"
    for row, formula in zip(others, reversed(FORMULAS), strict=True):
        for column in ("model", "error", "client"):
            assert row[column] == "'" + formula.replace("\r", "\\x0d")


async def test_csv_does_nothing_to_a_terminal(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "history.db")
    kept.hub.publish(ended(1, model="\x1b[2Jred", error="a\u202eb", client="Grüße"))
    text = b"".join([piece async for piece in activity.as_csv(kept.of, activity.where_of({}))]).decode()
    await kept.of.close()
    assert "\x1b" not in text
    assert "\u202e" not in text
    (row,) = csv.DictReader(io.StringIO(text))
    assert (row["model"], row["client"]) == ("\\x1b[2Jred", "Grüße")


@pytest.mark.parametrize("query", ["modle=a", "order=up", "limit=-1", "sort=secret", "status=x"])
async def test_the_route_refuses_what_it_does_not_understand(tmp_path: Path, query: str) -> None:
    async with routing(tmp_path) as router:
        assert (await ask(router.app, "GET", "/admin/activity", query=query)).status == 400


async def test_the_route_is_bounded(tmp_path: Path) -> None:
    async with routing(tmp_path) as router:
        for number in range(1200):
            router.hub.publish(ended(number))
        answer = (await ask(router.app, "GET", "/admin/activity", query="limit=999999999")).json()
        assert (len(answer["requests"]), answer["limit"], answer["total"]) == (1000, 1000, 1200)
        talk = await ask(router.app, "GET", "/admin/activity.csv", query="model=m&status=ok")
        assert talk.headers["content-type"].startswith("text/csv")
        assert talk.body.count(b"\n") == 1201


async def test_a_key_sees_its_own_requests(tmp_path: Path) -> None:
    keys = 'server.api_keys = [{ name = "all", key = "boss-key-1", admin = true }, { name = "one", key = "one-key-12" }, { name = "two", key = "two-key-12" }]'
    async with routing(tmp_path, keys) as router:
        for name in ("all", "one", "two", None):
            router.hub.publish(ended(1, key=name))
        seen: dict[str, int] = {}
        for key in ("boss-key-1", "one-key-12", "none-of-it"):
            for path in ("/admin/activity", "/admin/activity.csv"):
                talk = await ask(router.app, "GET", path, query="key=two", headers={"X-API-Key": key})
                all_ = await ask(router.app, "GET", path, headers={"X-API-Key": key})
                if path.endswith("csv"):
                    assert all_.body.count(b"\n") - 1 == seen[key] or all_.status == 401
                elif talk.status == 200:
                    seen[key] = all_.json()["total"]
                    assert talk.json()["total"] == (1 if key == "boss-key-1" else 0)
                else:
                    seen[key] = -1
            assert (await ask(router.app, "GET", "/admin/figures", headers={"X-API-Key": key})).status == {
                "boss-key-1": 200,
                "one-key-12": 403,
                "none-of-it": 401,
            }[key]
        assert seen == {"boss-key-1": 4, "one-key-12": 1, "none-of-it": -1}


async def test_histograms_are_of_those_that_match_and_of_what_is_known(kept: Kept) -> None:
    for number, (first, speed) in enumerate(((0.12, 41.0), (0.14, 44.0), (2.5, 65.0), (None, None)), start=6):
        kept.hub.publish(ended(number, model="fast", first_token_s=first, tokens_per_s=speed))
    found = await histograms(kept.of, activity.where_of({"model": "fast"}))
    assert found["enabled"]
    assert found["first_token_s"]["count"] == 3
    assert (found["first_token_s"]["p50"], found["first_token_s"]["p95"]) == (0.14, 2.5)
    bins = found["first_token_s"]["bins"]
    assert bins[0] == {"from": 0.1, "to": 0.15, "count": 2}
    assert bins[-1] == {"from": 2.0, "to": 3.0, "count": 1}
    assert [one["to"] for one in bins[:-1]] == [one["from"] for one in bins[1:]]
    assert [one["count"] for one in found["tokens_per_s"]["bins"]] == [2, 1]
    nobody = await histograms(kept.of, activity.where_of({"model": "nobody"}))
    assert nobody["tokens_per_s"] == {"count": 0, "p50": None, "p95": None, "bins": []}


@pytest.mark.parametrize("values", [[0.0], [1e-9, 1e9], [0.001], [70_000.0], [1.0] * 5])
def test_every_value_is_in_one_bin(values: list[float]) -> None:
    bins = histogram(values)["bins"]
    assert sum(one["count"] for one in bins) == len(values)
    assert bins[0]["from"] <= min(values)
    assert bins[-1]["to"] is None or bins[-1]["to"] > max(values)
