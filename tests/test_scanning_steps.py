"""Large JSON bodies of very many parts: their scanner passes over them in few steps."""

import json

import pytest

from engine_router.dialects.scanning import JsonScanner

COUNT = 50_000
BODIES = {
    "members": ("{" + ",".join(f'"k{i}": {i}' for i in range(COUNT)) + ', "model": "m"}').encode(),
    "texts": ("{" + ",".join(f'"k{i}": "v"' for i in range(COUNT)) + ', "model": "m"}').encode(),
    "lists": ("{" + ",".join(f'"k{i}": [1]' for i in range(COUNT)) + ', "model": "m"}').encode(),
    "integers": json.dumps({"x": [*range(COUNT)], "model": "m"}).encode(),
    "objects": json.dumps({"x": [{"a": [1, {}]}] * COUNT, "model": "m"}).encode(),
    "strings": json.dumps({"x": ['a"]}b'] * COUNT, "model": "m"}).encode(),
    "surrogates": json.dumps({"x": "\ud83d" * COUNT, "model": "m"}).encode(),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
@pytest.mark.parametrize("piece", [1000, 65536, 10_000_000])
def test_many_parts_are_few_steps(body: bytes, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0

    def counted(name: str) -> None:
        own = getattr(JsonScanner, name)

        def counting(self: JsonScanner, data: bytes, position: int) -> int:
            nonlocal steps
            steps += 1
            return own(self, data, position)

        monkeypatch.setattr(JsonScanner, name, counting)

    for name in ("_between", "_string", "_scalar", "_nested"):
        counted(name)
    scanner = JsonScanner()
    for start in range(0, len(body), piece):
        scanner.feed(body[start : start + piece])
    assert scanner.model == "m"
    # The window in which a value ends is read part by part; the rest is not.
    assert steps < COUNT / 5


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": 1, "mod\\u0065l": "m", "b": 2, "x": 3}',
        b'{"a": "model", "model": "m", "b": [{"model": "n"}]}',
        b'{"a": {"b": "}"}, "c": [[["]"]]], "model": "m", "z": 1}',
    ],
)
def test_what_is_passed_over_hides_nothing(body: bytes) -> None:
    for cut in range(len(body)):
        scanner = JsonScanner()
        scanner.feed(body[:cut])
        scanner.feed(body[cut:])
        assert scanner.model == "m"
