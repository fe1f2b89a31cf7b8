"""The choice of routes, as a table: a configuration, the state of the models, a request, and who answers it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_router.config import parse_config
from engine_router.models.availability import Availability, soonest
from engine_router.models.route_choice import (
    NOT_FOR_KEY,
    PAID,
    Candidate,
    NoChoice,
    RequestFeatures,
    RouteChoice,
    choose,
)
from engine_router.proxy.route_features import features_of

CONFIG = parse_config("""
    [engines.e]
    type = "process"
    argv = "serve {port}"
    models = ["big", "mid", "small", "eyes", "coder", "night", "embed", "cloud"]

    [routes.auto]
    prefer = ["big", "mid", "small"]

    [routes.first]
    prefer = ["big", "mid"]
    strategy = "first"
    fallback = false

    [routes.soonest]
    prefer = ["big", "mid", "small"]
    strategy = "soonest"

    [routes.spill]
    prefer = ["big", "mid", "small"]
    strategy = "spillover"
    spillover = 2

    [routes.any]
    prefer = ["small", "eyes", "embed"]
    strategy = "first"

    [routes.money]
    prefer = ["cloud", "small"]
    strategy = "first"
    allow_paid = true

    [routes.thrift]
    prefer = ["cloud", "small"]
    strategy = "first"

    [routes.rules]
    prefer = ["small"]

    [[routes.rules.rules]]
    images = true
    prefer = ["eyes"]
    [[routes.rules.rules]]
    tools = true
    max_prompt_tokens = 1000
    prefer = ["coder", "mid"]
    strategy = "first"
    [[routes.rules.rules]]
    min_prompt_tokens = 5000
    prefer = ["big"]
    [[routes.rules.rules]]
    max_answer_tokens = 50
    dialects = ["ollama"]
    prefer = ["mid"]
    [[routes.rules.rules]]
    min_answer_tokens = 4000
    paths = ["/v1/responses"]
    prefer = ["big"]
    [[routes.rules.rules]]
    keys = ["agent*"]
    prefer = ["coder"]
    [[routes.rules.rules]]
    headers = { User-Agent = "*cline*" }
    prefer = ["mid"]
    [[routes.rules.rules]]
    hours = "22:00-06:00"
    prefer = ["night"]
""")
CHAT, OLLAMA, MESSAGES, RESPONSES = "/v1/chat/completions", "/api/chat", "/v1/messages", "/v1/responses"


def ready(requests: int = 0, wait_s: float = 0.0, **more: Any) -> Candidate:
    return Candidate(
        availability=Availability(presence="ready", fits=True, requests=requests, wait_s=wait_s), **more
    )


def starting(wait_s: float = 5.0, requests: int = 1) -> Candidate:
    return Candidate(
        availability=Availability(presence="starting", fits=True, wait_s=wait_s, requests=requests)
    )


def absent(wait_s: float = 30.0, *, fits: bool = False, failed_for_s: float = 0.0, **more: Any) -> Candidate:
    return Candidate(availability=Availability(fits=fits, wait_s=wait_s, failed_for_s=failed_for_s), **more)


ALL_ABSENT = dict.fromkeys(("big", "mid", "small", "eyes", "coder", "night", "embed", "cloud"), absent())
TEXT = {"messages": [{"role": "user", "content": "hi"}]}
PICTURE = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]}
LONG = {"messages": [{"role": "user", "content": "x" * 24_000}]}
TOOLS = {**TEXT, "tools": [{"type": "function", "function": {"name": "f"}}]}
CLINE = {"user-agent": "Cline/3.1"}

# Route, what is known of models (all others are absent), the request, and the choice. Request: path, body, key, headers, hour.
CASES: list[tuple[str, dict[str, Candidate], dict[str, Any], str]] = [
    # What is loaded.
    ("auto", {}, {}, "big"),
    ("auto", {"small": ready()}, {}, "small"),
    ("auto", {"mid": ready(), "small": ready()}, {}, "mid"),
    ("auto", {"mid": starting(), "small": ready(3)}, {}, "small"),
    ("auto", {"mid": starting()}, {}, "mid"),
    ("auto", {"small": absent(fits=True)}, {}, "small"),
    ("auto", {"mid": starting(), "small": absent(fits=True)}, {}, "mid"),
    ("auto", {"big": ready(failed_ago_s=3.0)}, {}, "mid"),
    ("auto", {"big": ready(excluded=NOT_FOR_KEY), "small": ready()}, {}, "small"),
    ("auto", {"small": ready(context_length=4000)}, {"body": LONG}, "big"),
    ("auto", {"small": ready(context_length=8000)}, {"body": LONG}, "small"),
    ("auto", {"small": ready(context_length=8000)}, {"body": {**LONG, "max_tokens": 3000}}, "big"),
    # The first.
    ("first", {"mid": ready()}, {}, "big"),
    ("first", {"big": absent(failed_for_s=4.0), "mid": absent()}, {}, "mid"),
    ("first", {"big": absent(failed_ago_s=9.0), "mid": absent(failed_ago_s=1.0)}, {}, "big"),
    # The one that can begin first.
    ("soonest", {"big": absent(40.0), "mid": absent(9.0), "small": absent(10.0)}, {}, "mid"),
    ("soonest", {"big": ready(4, 20.0), "mid": absent(9.0)}, {}, "mid"),
    ("soonest", {"big": ready(), "mid": ready()}, {}, "big"),
    ("soonest", {"mid": starting(2.0), "small": absent(3.0, fits=True)}, {}, "mid"),
    ("soonest", {"mid": absent(1.0, failed_for_s=5.0), "small": absent(3.0)}, {}, "small"),
    # The first that is not busy.
    ("spill", {"big": ready(1)}, {}, "big"),
    ("spill", {"big": ready(2), "mid": ready(1)}, {}, "mid"),
    ("spill", {"big": ready(2), "mid": ready(2)}, {}, "small"),
    ("spill", {"big": ready(3), "mid": ready(2), "small": ready(4)}, {}, "mid"),
    # What can do it.
    ("any", {"eyes": absent(capabilities=("completion", "vision"))}, {"body": PICTURE}, "eyes"),
    ("any", {}, {"body": PICTURE}, "small"),
    ("any", {"embed": absent(capabilities=("embedding",))}, {"path": "/v1/embeddings", "body": {"input": "x"}}, "embed"),
    ("any", {"small": ready(capabilities=("embedding",))}, {}, "eyes"),
    # What costs money.
    ("thrift", {"cloud": ready(excluded=PAID)}, {}, "small"),
    ("money", {"cloud": ready()}, {}, "cloud"),
    # Conditions.
    ("rules", {}, {}, "small"),
    ("rules", {}, {"body": PICTURE}, "eyes"),
    ("rules", {}, {"path": MESSAGES, "body": {**TEXT, "messages": [{"role": "user", "content": [{"type": "image"}]}]}}, "eyes"),
    ("rules", {}, {"path": OLLAMA, "body": {"messages": [{"role": "user", "content": "?", "images": ["aGk="]}]}}, "eyes"),
    ("rules", {}, {"body": TOOLS}, "coder"),
    ("rules", {"coder": absent(failed_ago_s=2.0)}, {"body": TOOLS}, "mid"),
    ("rules", {}, {"body": {**LONG, "tools": TOOLS["tools"]}}, "big"),
    ("rules", {}, {"body": LONG}, "big"),
    ("rules", {}, {"path": OLLAMA, "body": {**TEXT, "options": {"num_predict": 50}}}, "mid"),
    ("rules", {}, {"path": OLLAMA, "body": TEXT}, "small"),
    ("rules", {}, {"body": {**TEXT, "max_tokens": 50}}, "small"),
    ("rules", {}, {"path": RESPONSES, "body": {"input": "hi"}}, "big"),
    ("rules", {}, {"path": RESPONSES, "body": {"input": "hi", "max_output_tokens": 100}}, "small"),
    ("rules", {}, {"key": "Agent-7"}, "coder"),
    ("rules", {}, {"key": "guest"}, "small"),
    ("rules", {}, {"headers": CLINE}, "mid"),
    ("rules", {}, {"headers": CLINE, "key": "agent"}, "coder"),
    ("rules", {}, {"hour": 23}, "night"),
    ("rules", {}, {"hour": 5}, "night"),
    ("rules", {}, {"hour": 6}, "small"),
]  # fmt: skip


def features(
    path: str = CHAT,
    body: dict[str, Any] | None = None,
    key: str | None = None,
    headers: dict[str, str] | None = None,
    hour: int = 12,
) -> RequestFeatures:
    wire = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return features_of(path, wire, TEXT if body is None else body, key)


def test_a_part_whose_type_is_none_is_no_image() -> None:
    odd: dict[str, Any] = {"messages": [{"role": "user", "content": [{"type": []}, {"type": {}}]}]}
    assert not features(body=odd).images


@pytest.mark.parametrize(
    ("route", "known", "request_", "chosen"), CASES, ids=[f"{case[0]}-{i}" for i, case in enumerate(CASES)]
)
def test_each_request_goes_where_it_should(
    route: str, known: dict[str, Candidate], request_: dict[str, Any], chosen: str
) -> None:
    candidates = {**ALL_ABSENT, **known}
    minute = request_.get("hour", 12) * 60
    choice = choose(route, CONFIG.routes[route], candidates, features(**request_), minute)
    assert isinstance(choice, RouteChoice)
    assert choice.model == choice.order[0] == chosen
    assert f"leads to '{chosen}' by " in choice.reason


def test_a_reason_names_rule_state_and_who_was_passed_over() -> None:
    known = {**ALL_ABSENT, "coder": absent(failed_ago_s=2.0), "mid": absent(12.4, fits=True)}
    choice = choose("rules", CONFIG.routes["rules"], known, features(body=TOOLS), 0)
    assert isinstance(choice, RouteChoice)
    assert choice.reason == (
        "route 'rules', rule 2 (tools, max_prompt_tokens), leads to 'mid' by first: fits beside what is loaded, "
        "about 12 s; 'coder' is cooling down: it failed 2 s ago"
    )
    following = choice.next("could not be started")
    assert following is not None
    assert (following.model, following.order) == ("coder", ("coder",))
    assert following.reason == "route 'rules' falls back to 'coder': 'mid' could not be started"
    assert following.next("could not be started") is None


def test_without_fallback_nobody_comes_next() -> None:
    choice = choose("first", CONFIG.routes["first"], ALL_ABSENT, None, 0)
    assert isinstance(choice, RouteChoice)
    assert choice.next("cannot be reached") is None


def test_what_nothing_is_known_of_meets_no_condition_but_the_hour() -> None:
    noon = choose("rules", CONFIG.routes["rules"], ALL_ABSENT, None, 12 * 60)
    night = choose("rules", CONFIG.routes["rules"], ALL_ABSENT, None, 23 * 60)
    assert isinstance(noon, RouteChoice)
    assert isinstance(night, RouteChoice)
    assert (noon.model, night.model) == ("small", "night")


@pytest.mark.parametrize(
    ("excluded", "is_forbidden"),
    [(NOT_FOR_KEY, True), (PAID, False), (None, False)],
    ids=["key", "paid", "unknown"],
)
def test_a_route_whose_models_may_not_be_asked_chooses_none(excluded: str | None, is_forbidden: bool) -> None:
    known = {} if excluded is None else dict.fromkeys(("big", "mid"), ready(excluded=excluded))
    outcome = choose("first", CONFIG.routes["first"], known, features(), 0)
    assert isinstance(outcome, NoChoice)
    assert outcome.is_forbidden is is_forbidden
    words = excluded or "served by no engine now"
    named = f": 'big' is {words}, 'mid' is {words}"  # but for a key, which is told of no other's models
    assert outcome.reason == f"route 'first' has no model{' for this key' if is_forbidden else named}"


CANDIDATES = st.builds(
    Candidate,
    availability=st.builds(
        Availability,
        presence=st.sampled_from(("ready", "starting", "absent")),
        fits=st.booleans(),
        requests=st.integers(0, 5),
        wait_s=st.floats(0, 100),
        failed_for_s=st.sampled_from((0.0, 5.0)),
    ),
    excluded=st.sampled_from(("", "", NOT_FOR_KEY, PAID)),
    capabilities=st.sampled_from((("completion",), ("completion", "vision"), ("embedding",))),
    context_length=st.sampled_from((None, 100, 100_000)),
    failed_ago_s=st.sampled_from((None, 3.0)),
)


@given(
    st.sampled_from(sorted(CONFIG.routes)),
    st.dictionaries(st.sampled_from(sorted(ALL_ABSENT)), CANDIDATES),
    st.sampled_from((TEXT, PICTURE, LONG, TOOLS)),
    st.integers(0, 1439),
)
def test_who_is_excluded_is_never_asked_and_all_others_are(
    name: str, known: dict[str, Candidate], body: dict[str, Any], minute: int
) -> None:
    route = CONFIG.routes[name]
    choice = choose(name, route, known, features(body=body), minute)
    wanted = [route.prefer, *(rule.prefer for rule in route.rules)]
    if isinstance(choice, NoChoice):
        assert any(all(m not in known or known[m].excluded for m in prefer) for prefer in wanted)
        return
    assert all(model in known and not known[model].excluded for model in choice.order)
    allowed = [sorted(m for m in prefer if m in known and not known[m].excluded) for prefer in wanted]
    assert sorted(choice.order) in allowed


def test_of_equals_the_first_one_is_the_soonest() -> None:
    ready_now, failed = Availability(presence="ready"), Availability(failed_for_s=1.0)
    assert soonest([("f", failed), ("a", ready_now), ("b", ready_now), ("c", Availability(wait_s=1.0))]) == [
        "a", "b", "c", "f",
    ]  # fmt: skip
