"""The dialects: errors that real clients understand, requests that are read, and bytes that stay as they are."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import openai
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine_router import errors
from engine_router.dialects import ANTHROPIC, OLLAMA, OPENAI, Dialect, dialect_of
from engine_router.dialects.base import error_headers
from engine_router.dialects.engine_errors import error_message
from engine_router.dialects.frames import EventFrames
from engine_router.dialects.json_body import to_json
from engine_router.dialects.multipart import route_multipart
from engine_router.dialects.routed import route_json
from engine_router.errors import BadRequest, EngineError, RouterError

DIALECTS = {"openai": OPENAI, "ollama": OLLAMA, "anthropic": ANTHROPIC}
NASTY = 'it said "no"\n\ndata: {"x": 1}\r\n\r\nevent: y\n → ü \x00 \u2028 half \ud800'


def classes(base: type[RouterError] = RouterError) -> Iterator[type[RouterError]]:
    yield base
    for sub in base.__subclasses__():
        yield from classes(sub)


def make(kind: type[RouterError], text: str = "what went wrong") -> RouterError:
    if kind in (errors.AdminOnly, errors.ModelNotForKey, errors.UnknownModel):
        return kind(text, ["other"] if kind is errors.UnknownModel else "other")  # type: ignore[call-arg]
    if kind is errors.BodyTooLarge:
        return errors.BodyTooLarge(1_000_000)
    if kind is errors.EngineRefused:
        return errors.EngineRefused("a", 422, text)
    if kind is errors.NotEnoughMemory:
        return errors.NotEnoughMemory("a", 20_000_000_000, 12_000_000_000, 7.2)
    if issubclass(kind, EngineError):
        return kind("a", text, log_tail=["line 1", "line 2"], retry_after_s=7.2)
    return kind(text, retry_after_s=0.2) if kind is errors.QueueFull else kind(text)


# But those that each dialect tells in words of its own (test_engine_words.py).
ALL = sorted(
    {k for k in classes() if k.__module__.startswith(f"{errors.__name__}.")} - {errors.ContextTooLong},
    key=lambda kind: kind.__name__,
)
each_error = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
each_dialect = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)


def client(answer: httpx.Response) -> httpx.MockTransport:
    return httpx.MockTransport(lambda _: answer)


def openai_client(answer: httpx.Response) -> openai.OpenAI:
    http = httpx.Client(transport=client(answer))
    return openai.OpenAI(api_key="k", base_url="http://router/v1", http_client=http, max_retries=0)


def chat(answer: httpx.Response, *, stream: bool) -> Any:
    with openai_client(answer) as speaker:
        result = speaker.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}], stream=stream
        )
        return list(result) if stream else result


# Which dialect, and whether a stream was asked for.


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/chat/completions", OPENAI),
        ("/v1/messages", ANTHROPIC),
        ("/v1/messages/count_tokens", ANTHROPIC),
        ("/v1/messagesx", OPENAI),
        ("/api/chat", OLLAMA),
        ("/apis", OPENAI),
        ("/", OPENAI),
    ],
)
def test_the_path_tells_the_dialect(path: str, dialect: Dialect) -> None:
    assert dialect_of(path) is dialect


@pytest.mark.parametrize(
    ("path", "body", "streams"),
    [
        ("/v1/chat/completions", {"stream": True}, True),
        ("/v1/chat/completions", {}, False),
        ("/v1/chat/completions", {"stream": None}, False),
        ("/v1/chat/completions", {"stream": "true"}, False),
        ("/v1/completions", {"stream": True}, True),
        ("/v1/responses", {"stream": True}, True),
        ("/v1/embeddings", {"stream": True}, False),
        ("/v1/messages", {"stream": True}, True),
        ("/v1/messages", {}, False),
        ("/v1/messages/count_tokens", {"stream": True}, False),
        ("/api/chat", {}, True),
        ("/api/generate", {"stream": None}, True),
        ("/api/generate", {"stream": False}, False),
        ("/api/embed", {}, False),
        ("/api/embeddings", {"stream": True}, False),
    ],
)
def test_a_stream_was_asked_for_or_not(path: str, body: dict[str, Any], streams: bool) -> None:
    assert dialect_of(path).streams(path, body) is streams


# Errors.


@each_error
def test_every_error_has_a_shape_in_every_dialect(kind: type[RouterError]) -> None:
    error = make(kind)
    assert 400 <= error.status <= 599
    assert error.code == error.code.lower().replace(" ", "_")
    assert OPENAI.error(error) == {
        "error": {"message": str(error), "type": error.kind, "param": None, "code": error.code}
    }
    assert OLLAMA.error(error) == {"error": str(error)}
    assert ANTHROPIC.error(error) == {
        "type": "error",
        "error": {"type": error.anthropic_kind, "message": str(error)},
    }


@each_error
@each_dialect
def test_no_message_breaks_out_of_its_frame(kind: type[RouterError], dialect: Dialect) -> None:
    error = make(kind, NASTY)
    frame = dialect.stream_error(error)
    if dialect is OLLAMA:
        assert frame.count(b"\n") == 1
        assert json.loads(frame) == {"error": str(error)}
    else:
        lines = frame.split(b"\n")
        assert lines[-2:] == [b"", b""]
        assert b"\r" not in frame
        assert json.loads(lines[-3].removeprefix(b"data: ")) == dialect.error(error)
    assert dialect.frames_end(frame) == len(frame)


@each_error
def test_openai_raises_the_error_by_its_status(kind: type[RouterError]) -> None:
    error = make(kind)
    answer = httpx.Response(error.status, json=OPENAI.error(error), headers=error_headers(error))
    with pytest.raises(openai.APIStatusError) as caught:
        chat(answer, stream=False)
    assert caught.value.status_code == error.status
    assert caught.value.code == error.code
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["message"] == str(error)


@each_error
@pytest.mark.parametrize("before", [b"", b": keepalive\n\n: keepalive\n\n", b'data: {"choices":[]}\n\n'])
def test_openai_raises_the_error_inside_a_stream(kind: type[RouterError], before: bytes) -> None:
    error = make(kind)
    answer = httpx.Response(
        200, content=before + OPENAI.stream_error(error), headers={"content-type": OPENAI.stream_type}
    )
    with pytest.raises(openai.APIError) as caught:
        chat(answer, stream=True)
    assert caught.value.message == str(error)


@each_error
@pytest.mark.parametrize(
    "before", [b"", b"   ", b'{"model":"m","message":{"role":"assistant"},"done":false}\n']
)
def test_ollama_raises_the_error_before_and_inside_a_stream(kind: type[RouterError], before: bytes) -> None:
    error = make(kind)
    for answer in (
        httpx.Response(error.status, json=OLLAMA.error(error)),
        httpx.Response(200, content=before + OLLAMA.stream_error(error)),
    ):
        speaker = ollama.Client("http://router", transport=client(answer))
        with pytest.raises(ollama.ResponseError) as caught:
            list(speaker.chat("m", stream=True))
        assert caught.value.error == str(error)


@each_error
def test_anthropic_names_the_event_of_an_error(kind: type[RouterError]) -> None:
    error = make(kind)
    name, data, *rest = ANTHROPIC.stream_error(error).decode().split("\n")
    assert name == "event: error"  # only an event of this name is raised
    assert json.loads(data.removeprefix("data: "))["error"]["message"] == str(error)
    assert rest == ["", ""]


@each_error
def test_anthropic_calls_overloaded_what_a_retry_may_help(kind: type[RouterError]) -> None:
    """Claude Code tries again what has this name, for minutes, even where `x-should-retry` says that it is no use."""
    error = make(kind)
    if not error.retryable:
        assert ANTHROPIC.error(error)["error"]["type"] != "overloaded_error"


@each_dialect
def test_keepalives_mean_nothing_to_a_client(dialect: Dialect) -> None:
    if dialect is OLLAMA:
        answer = httpx.Response(200, content=b"   " + b'{"message":{"role":"assistant","content":"x"}}\n')
        speaker = ollama.Client("http://router", transport=client(answer))
        assert [part.message.content for part in speaker.chat("m", stream=True)] == ["x"]
    else:
        assert list(EventFrames().events(dialect.keepalive * 3)) == []
        assert dialect.frames_end(dialect.keepalive) == len(dialect.keepalive)


@each_error
def test_headers_tell_when_to_try_again(kind: type[RouterError]) -> None:
    error = make(kind)
    headers = error_headers(error)
    assert headers.get("x-should-retry") == (None if error.retryable else "false")
    assert ("WWW-Authenticate" in headers) == (error.status == 401)
    expected = {None: None, 0.2: "1", 7.2: "8"}[error.retry_after_s]
    assert headers.get("Retry-After") == expected


@each_dialect
@pytest.mark.parametrize(
    ("data", "sse", "lines"),
    [
        (b"", 0, 0),
        (b"data: 1\n\n", 9, 9),
        (b"data: 1\n\ndata", 9, 9),
        (b"data: 1\r\n\r\nda\n\ne", 15, 15),
        (b"a\n\nb\r\n\r\nc", 8, 8),
        (b"{}\n{", 0, 3),
        (b"x}\r\n", 0, 4),
        (b"data", 0, 0),
    ],
)
def test_where_the_last_frame_ends(dialect: Dialect, data: bytes, sse: int, lines: int) -> None:
    assert dialect.frames_end(data) == (lines if dialect is OLLAMA else sse)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", None),
        (b"  \n", None),
        (b"plain text", "plain text"),
        (b"\xff\xfe", "��"),
        (b'{"error":{"message":"m","type":"t"}}', "m"),
        (b'{"type":"error","error":{"type":"t","message":"m"}}', "m"),
        (b'{"error":"m"}', "m"),
        (b'{"detail":"m"}', "m"),
        (b'{"message":"m"}', "m"),
        (b'{"detail":[{"loc":["body"]}]}', None),
        (b'{"error":{"message":""}}', '{"error":{"message":""}}'),
        (b'{"error":null}', '{"error":null}'),
        (b"[1]", "[1]"),
        (b"7", "7"),
        (b"x" * 5000, "x" * 2000),
        (b"[" * 100_000, "[" * 2000),
    ],
)
def test_the_message_of_any_engines_error(body: bytes, message: str | None) -> None:
    assert error_message(body) == message


# Requests.

BAD_BODIES = {
    "empty": (b"", "empty"),
    "blank": (b" \r\n\t", "empty"),
    "text": (b"hello", "not JSON"),
    "cut off": (b'{"model": "m"', "not JSON"),
    "two": (b'{"model":"m"}{"model":"n"}', "not JSON"),
    "invalid UTF-8": (b'{"model": "m\xff"}', "not UTF-8 text \\(byte 12\\)"),
    "a surrogate in UTF-8": (b'{"model": "m\xed\xa0\x80"}', "not UTF-8 text"),
    "UTF-16": ('{"model": "m"}'.encode("utf-16"), "not UTF-8 text"),
    "UTF-16 without a mark": ('{"model": "m"}'.encode("utf-16-le"), "not JSON"),
    "list": (b'[{"model": "m"}]', "must be a JSON object"),
    "string": (b'"m"', "must be a JSON object"),
    "null": (b"null", "must be a JSON object"),
    "deep": (b'{"a":' * 100_000, "not JSON"),
    "deep list": (b'{"model":"m","a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON"),
    "NaN": (b'{"model":"m","a":NaN}', "NaN is no JSON number"),
    "Infinity": (b'{"model":"m","a":[-Infinity]}', "-Infinity is no JSON number"),
    "no model": (b"{}", "names no model"),
    "null model": (b'{"model":null}', "names no model"),
    "number": (b'{"model":7}', "must be a string"),
    "bool": (b'{"model":true}', "must be a string"),
    "list model": (b'{"model":["m"]}', "must be a string"),
    "empty model": (b'{"model":""}', '"model" is empty'),
    "empty model and name": (b'{"model":"","name":""}', '"model" is empty'),
    "blank model beside a name": (b'{"model":" ","name":"m"}', '"model" is empty'),
    "number beside a name": (b'{"model":0,"name":"m"}', "must be a string"),
    "blank model": (b'{"model":" \\n\\t"}', '"model" is empty'),
    "half a surrogate pair": (b'{"model":"\\ud800"}', "not text"),
    "control character": (b'{"model":"a\nb"}', "not JSON"),
}


@pytest.mark.parametrize("what", BAD_BODIES)
@each_dialect
def test_a_bad_body_is_a_bad_request(dialect: Dialect, what: str) -> None:
    body, message = BAD_BODIES[what]
    with pytest.raises(BadRequest, match=message) as caught:
        route_json(dialect, "/v1/chat/completions", body)
    assert caught.value.status == 400
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("number", [b"9" * 5000, b"1e999"])
def test_a_number_that_nobody_can_hold_is_the_engines_to_judge_unless_the_name_changes(number: bytes) -> None:
    body = b'{"model":"m","a":' + number + b"}"
    routed = route_json(OPENAI, "/v1/chat/completions", body)
    assert routed.renamed("m") is body
    with pytest.raises(BadRequest):
        routed.renamed("other")


@given(st.binary())
def test_no_body_raises_anything_else(body: bytes) -> None:
    with pytest.raises(BadRequest):
        route_json(OPENAI, "/v1/chat/completions", body)


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model":"m"}', "m"),
        (b'{"name":"m"}', "m"),
        (b'{"model":"m","name":"n"}', "m"),
        # What Ollama's own client in Go sends: members without a value are there, with Go's empty one.
        (b'{"model":"","name":"m"}', "m"),
        (b'{"model":null,"name":"m"}', "m"),
        (b'{"model":"m","name":""}', "m"),
        (b'{"model":"","name":"m","x":"\\ud800"}', "m"),
        (b'{"messages":[{"content":"{\\"model\\":\\"n\\"}"}],"model":"m"}', "m"),
        (b'{"model":"n","model":"m"}', "m"),
        (b'\xef\xbb\xbf{"model":"m"}', "m"),
        ('{"model":"qwen→ü:7b"}'.encode(), "qwen→ü:7b"),
        (b'{"model":"\\ud83d\\ude00"}', "😀"),
        (b'{"model":" m "}', " m "),
    ],
)
def test_the_model_is_found(body: bytes, model: str) -> None:
    assert route_json(OPENAI, "/v1/chat/completions", body).model == model


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values, max_size=5), st.sampled_from(["model", "name"]))
def test_a_body_stays_byte_for_byte_unless_the_name_changes(data: dict[str, Any], key: str) -> None:
    data = {**{k: v for k, v in data.items() if k not in ("model", "name")}, key: "old", "tail": 1.5}
    for body in (json.dumps(data).encode(), json.dumps(data, indent=3).encode() + b"\n"):
        routed = route_json(OLLAMA, "/api/chat", body)
        assert routed.renamed("old") is body
        renamed = json.loads(routed.renamed("new → ü"))
        assert renamed == {**data, key: "new → ü"}
        assert list(renamed) == list(data)


def test_renaming_names_the_model_where_engines_look_first() -> None:
    renamed = json.loads(route_json(OLLAMA, "/api/show", b'{"model":"","name":"old"}').renamed("new"))
    assert renamed["model"] == "new"


def test_renaming_keeps_what_utf8_cannot_say() -> None:
    body = b'{"model":"m","x":"\\ud800","n":12345678901234567890123,"f":0.1}'
    renamed = json.loads(route_json(OPENAI, "/v1/completions", body).renamed("n"))
    assert renamed == {"model": "n", "x": "\ud800", "n": 12345678901234567890123, "f": 0.1}


@given(json_values)
def test_what_is_written_is_json(value: Any) -> None:
    assert json.loads(to_json(value)) == value


# Forms.

FORM = "multipart/form-data; boundary=XX"
SOUND = bytes(range(256)) * 5 + b"\r\n--X\r\n--XY\r\n\r\n--"
PARTS = [
    b'Content-Disposition: form-data; name="file"; filename="a \\"b\\" \xc3\xbc.wav"\r\n'
    b"Content-Type: audio/wav\r\nX-Other: 1\r\n\r\n" + SOUND,
    b'Content-Disposition: form-data; name="model"\r\n\r\nwhisper',
    b'content-disposition: form-data; name="prompt"\r\n\r\nmodel\r\n\r\nwhisper\r\n',
    b'Content-Disposition: form-data; name="model"; filename="model"\r\n\r\nnot this',
    b'Content-Disposition: form-data; name="empty"\r\n\r\n',
]


def form(*parts: bytes, boundary: bytes = b"XX", preamble: bytes = b"", epilogue: bytes = b"\r\n") -> bytes:
    return (
        preamble
        + b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts)
        + b"--"
        + boundary
        + b"--"
        + epilogue
    )


@given(st.permutations(PARTS), st.sampled_from([b"", b"hello\r\n"]), st.sampled_from([b"", b"\r\n", b"bye"]))
def test_the_model_of_a_form_and_every_other_byte(
    parts: list[bytes], preamble: bytes, epilogue: bytes
) -> None:
    body = form(*parts, preamble=preamble, epilogue=epilogue)
    routed = route_multipart(FORM, body)
    assert (routed.model, routed.streams) == ("whisper", False)
    assert routed.renamed("whisper") is body
    expected = [
        part.replace(b"\r\n\r\nwhisper", b"\r\n\r\nlarge-\xc3\xbc") if b'"model"\r\n' in part else part
        for part in parts
    ]
    renamed = routed.renamed("large-ü")
    assert renamed == form(*expected, preamble=preamble, epilogue=epilogue)
    assert route_multipart(FORM, renamed).model == "large-ü"


@given(st.binary(max_size=300), st.binary(max_size=300), st.sampled_from(["m", "model-ü", "a\r\nb", "-XX"]))
@example(b"\r\n--XX", b"--XX--", "m")
def test_a_form_with_anything_in_it(before: bytes, after: bytes, model: str) -> None:
    if b"--XX" in before + b" " + after:
        before, after = before.replace(b"--XX", b""), after.replace(b"--XX", b"")
        if b"--XX" in before + after:
            return
    file = b'Content-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    field = b'Content-Disposition: form-data; name="model"\r\n\r\n'
    body = form(file + before, field + model.encode(), file + after)
    routed = route_multipart(FORM, body)
    assert routed.model == model
    assert routed.renamed("n") == form(file + before, field + b"n", file + after)


def test_a_quoted_boundary_and_what_httpx_writes() -> None:
    request = httpx.Request(
        "POST",
        "http://x/",
        data={"model": "whisper", "language": "de"},
        files={"file": ("ü.wav", SOUND, "audio/wav")},
    )
    body = request.read()
    routed = route_multipart(request.headers["content-type"], body)
    assert routed.model == "whisper"
    assert routed.renamed("w2") == body.replace(b"\r\n\r\nwhisper\r\n", b"\r\n\r\nw2\r\n")
    quoted = form(PARTS[1], boundary=b"a b?c")
    assert route_multipart('multipart/form-data; charset=x; boundary="a b?c"', quoted).model == "whisper"


MODEL = b'Content-Disposition: form-data; name="model"\r\n\r\n'


@pytest.mark.parametrize(
    ("content_type", "body", "message"),
    [
        (FORM, form(PARTS[0], PARTS[2], PARTS[3]), 'no field "model"'),
        (FORM, form(), 'no field "model"'),
        (FORM, form(PARTS[1], PARTS[1]), "more than one"),
        (FORM, form(MODEL), '"model" is empty'),
        (FORM, form(MODEL + b"  "), '"model" is empty'),
        (FORM, form(MODEL + b"\xff"), "not UTF-8"),
        (FORM, b"", "cannot be read"),
        (FORM, b"--XX\r\n" + PARTS[1], "cannot be read"),
        (FORM, b"--XX\r\nContent-Type: x\r\n\r\n\r\n--XX--", "cannot be read"),
        (FORM, b"--XX\r\nContent-Disposition: \xff\r\n\r\n\r\n--XX--", "cannot be read"),
        (FORM, form(*[PARTS[4]] * 1001), "more than 1000 parts"),
        ("multipart/form-data", form(PARTS[1]), "with a boundary"),
        ("multipart/mixed; boundary=XX", form(PARTS[1]), "with a boundary"),
        ("multipart/form-data; boundary=YY", form(PARTS[1]), "cannot be read"),
    ],
)
def test_a_bad_form_is_a_bad_request(content_type: str, body: bytes, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        route_multipart(content_type, body)


@given(st.binary())
def test_no_form_raises_anything_else(rest: bytes) -> None:
    with pytest.raises(BadRequest):
        route_multipart(FORM, b"--XX\r\n" + rest)


# Server-sent events.

lines_of_data = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)


@given(
    events=st.lists(st.lists(lines_of_data, min_size=1, max_size=3), max_size=5),
    noise=st.sampled_from([":", ": keepalive", "event: x", "id: 7", "retry: 1", "unknown", ":\n\n:"]),
    end=st.sampled_from(["\n", "\r\n"]),
    space=st.sampled_from(["", " "]),
    cuts=st.lists(st.integers(0, 400), max_size=10),
)
@example(events=[["{→ü😀}"]], noise=":", end="\r\n", space=" ", cuts=list(range(100)))
def test_events_are_the_same_however_they_are_split(
    events: list[list[str]], noise: str, end: str, space: str, cuts: list[int]
) -> None:
    text = ""
    for lines in events:
        text += noise.replace("\n", end) + end
        text += "".join(f"data:{space or ' ' * line.startswith(' ')}{line}{end}" for line in lines) + end
    raw = text.encode()
    reader = EventFrames()
    bounds = [0, *sorted(cut for cut in cuts if cut < len(raw)), len(raw)]
    found = [
        data.decode() for start, stop in itertools.pairwise(bounds) for data in reader.events(raw[start:stop])
    ]
    assert found == ["\n".join(lines) for lines in events]


def test_an_event_without_its_end_is_not_an_event() -> None:
    reader = EventFrames()
    assert list(reader.events(b"data: 1\n\ndata: 2\n")) == [b"1"]
    assert list(reader.events(b"data: 3\n")) == []
    assert list(reader.events(b"\n")) == [b"2\n3"]
