"""Forward plans: the request that an engine gets for a client's, and the stages of the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from attrs import define

from engine_router.config import Config, ModelConfig, RemoteConfig, VariantConfig
from engine_router.dialects import ANTHROPIC, OLLAMA, OPENAI, dialect_of
from engine_router.dialects.base import Dialect, Translation
from engine_router.dialects.engine_options import EngineTraits
from engine_router.dialects.json_body import Octets, parse_object, to_json
from engine_router.dialects.ollama.load_only import kept_for_ever
from engine_router.dialects.openai.request import STREAMABLE, as_stream
from engine_router.dialects.policy import Policy
from engine_router.dialects.renaming import Renaming
from engine_router.dialects.routed import Routed
from engine_router.models.endpoints import OPTIONAL, EndpointSupport
from engine_router.models.registry import Target
from engine_router.proxy.remote_paths import check_remote_path
from engine_router.proxy.request_body import IncomingRequest, is_form
from engine_router.proxy.streamed_body import StreamedRequest
from engine_router.upstream.forwarding import EngineRequests, Outgoing
from engine_router.upstream.http1 import Arriving

if TYPE_CHECKING:
    from engine_router.dialects.footer import Footer


class Filter(Protocol):
    """Changes an answer that stays in its dialect."""

    def begin(self, status: int, content_type: str, content_encoding: str = "") -> bool:
        """Take in the head of the answer; tell whether its body may change. Nothing is fed where it does not."""
        ...

    def feed(self, data: bytes) -> bytes:
        """Take in bytes of the answer, split anywhere; return what goes on."""
        ...

    def end(self) -> bytes:
        """Take in the end of the answer; return what was held back."""
        ...


@define(kw_only=True, eq=False, repr=False)
class ForwardPlan:
    """The plan of one request: what its engine gets, and what the answer passes through.

    Attributes:
        translation: between the client's dialect and the engine's, or from a stream to one piece; None where the answer
            goes on as it comes.
        dialect: the client's, where the engine speaks it too: its errors of another shape are translated, and those
            of this one go on unchanged. None where it speaks another, or nobody has to understand it.
        filters: what the answer passes through, in this order, in the client's dialect.
    """

    outgoing: Outgoing
    translation: Translation | None = None
    dialect: Dialect | None = None
    filters: Sequence[Filter] = ()


ChoosePlan = Callable[[str], Awaitable[ForwardPlan]]
"""Returns the plan for an engine at an address, where the engine has to be asked first."""


class ForwardPlanner:
    """Plans how requests go to their engines, by one configuration.

    Attributes:
        requests: makes the requests to each engine.

    Args:
        traits_of: returns what a translation needs to know of a model's engine.
        instance_id: the id of this router, which peers are told.
    """

    def __init__(
        self,
        config: Config,
        endpoint_support: EndpointSupport,
        traits_of: Callable[[Target], EngineTraits],
        instance_id: str = "",
    ) -> None:
        self._config = config
        self._traits_of = traits_of
        self._endpoint_support = endpoint_support
        self.requests = {name: EngineRequests(config, name, instance_id) for name in config.engines}
        policies = {name: policy_of(model) for name, model in config.models.items()}
        for name, variant in config.variants.items():
            policies[name] = policy_of(config.models[variant.of], variant.config)
        self._policies = {name: policy for name, policy in policies.items() if policy}

    def is_native(self, path: str, target: Target) -> bool | None:
        """Tell whether an engine serves a path itself; None where it has to be asked once it runs.

        Raises:
            BadRequest: it neither does, nor can a translation be sent there.
        """
        engine = self._config.engines[target.engine]
        if isinstance(engine, RemoteConfig):
            check_remote_path(engine, target.engine, path, may_translate=True)
            if not engine.speaks("openai") and dialect_of(path) is not ANTHROPIC:
                return False
        if dialect_of(path) is OLLAMA:
            return engine.speaks("ollama") if isinstance(engine, RemoteConfig) else engine.type == "ollama"
        if path == "/v1/messages" and target.engine in self._config.guarded_engines:
            return False  # an engine makes a chat of it, as the router does, but takes neither slot nor salt for it
        if path == "/v1/responses" and target.engine in self._config.keeping_engines:
            return False  # no conversation is known by it
        return True if path not in OPTIONAL else self._endpoint_support.known(target.engine, path)

    def passes(self, path: str, model: str, target: Target) -> bool:
        """Tell whether a request goes to its engine as it is, every byte of it, whatever stands in it.

        Only such a one may be relayed before it is known as a whole: a large body means what a small one means.
        """
        if self._depends_on_body(path) or self._collects(path, target):
            return False
        return (
            target.upstream == model
            and target.engine not in self._config.guarded_engines
            and target.model not in self._policies
            and self.is_native(path, target) is True
        )

    def _depends_on_body(self, path: str) -> bool:
        """Tell whether what is done with a request, or its answer, depends on more of its body than the model."""
        # Ollama's says how long its model stays, or only loads it. Anthropic's may carry progress that the router
        # wrote, and has what tokens are counted of. What is said to a client of responses who waits repeats it.
        if dialect_of(path) is not OPENAI or path == "/v1/responses":
            return True
        if not self._config.server.footer:
            return False
        from engine_router.dialects.footer import may_have_footer  # noqa: PLC0415 - few need it

        return may_have_footer(path)

    def plan(
        self,
        incoming: IncomingRequest,
        routed: Routed | StreamedRequest,
        target: Target,
        *,
        native: bool,
        load_s: Callable[[], float],
        footer: Footer | None = None,
    ) -> ForwardPlan:
        """Return the plan of a request.

        Args:
            native: the engine serves the path itself.
            load_s: tells, at the end, for how many seconds the request waited for its model.
            footer: what adds a last line to the answer.

        Raises:
            BadRequest: it cannot be understood.
        """
        last: list[Filter] = [_Footed(footer)] if footer is not None else []
        if isinstance(routed, StreamedRequest):
            outgoing = self._outgoing(
                incoming, target, incoming.path, routed.body, is_json=not is_form(incoming)
            )
            return ForwardPlan(outgoing=outgoing, dialect=dialect_of(incoming.path), filters=last)
        if not native:
            translation = self._translation(incoming.path, routed, target, load_s)
            body = self._changed(translation.path, translation.body, target)
            outgoing = self._outgoing(incoming, target, translation.path, body, is_json=True)
            return ForwardPlan(outgoing=outgoing, translation=translation, filters=last)
        path, dialect = incoming.path, dialect_of(incoming.path)
        body = routed.renamed(target.upstream)
        if dialect is not OPENAI:
            body = _native_body(path, dialect, body, is_ours=not self._is_remote(target))
        if target.model in self._policies:
            body = self._changed(path, body, target)
        collected: Translation | None = None
        if not routed.streams and routed.is_json and self._collects(path, target):
            collected = _collected(path, body)
            body = body if collected is None else collected.body
        outgoing = self._outgoing(incoming, target, path, body, is_json=routed.is_json)
        if target.upstream != routed.model:
            last.insert(0, Renaming(path, body, routed.model))
        return ForwardPlan(outgoing=outgoing, translation=collected, dialect=dialect, filters=last)

    def _translation(
        self, path: str, routed: Routed, target: Target, load_s: Callable[[], float]
    ) -> Translation:
        engine = self._config.engines[target.engine]
        speaks_openai = not isinstance(engine, RemoteConfig) or engine.speaks("openai")
        if speaks_openai:
            return _translation(path, routed, target, load_s, lambda: self._traits_of(target))
        from engine_router.dialects.anthropic import messages_answers as chat_messages  # noqa: PLC0415 - see there

        if path == "/v1/chat/completions":
            return chat_messages.translate(path, routed.data(), model=routed.model, upstream=target.upstream)
        first = _translation(path, routed, target, load_s, EngineTraits)  # nothing is known of who runs it
        return chat_messages.before(first, model=routed.model, upstream=target.upstream)

    def _is_remote(self, target: Target) -> bool:
        return isinstance(self._config.engines[target.engine], RemoteConfig)

    def _collects(self, path: str, target: Target) -> bool:
        return self._config.engines[target.engine].stream_upstream and path in STREAMABLE

    def _changed(self, path: str, body: Octets, target: Target) -> Octets:
        policy = self._policies.get(target.model)
        return body if policy is None else to_json(policy.applied(path, parse_object(body)))

    def _outgoing(
        self, incoming: IncomingRequest, target: Target, path: str, body: Octets | Arriving, *, is_json: bool
    ) -> Outgoing:
        sent = incoming.target(path, target.upstream)
        requests = self.requests[target.engine]
        return requests.outgoing(incoming.method, sent, incoming.headers, body, is_json=is_json)


def policy_of(model: ModelConfig, variant: VariantConfig | None = None) -> Policy:
    """Return what is changed in the requests for a model, or for a variant of it, which counts more."""
    own = VariantConfig() if variant is None else variant
    return Policy(
        strip=(*model.strip, *own.strip),
        defaults={**model.defaults, **own.defaults},
        efforts=model.reasoning_effort,
        set={**model.set, **own.set},
        disable_thinking_below=model.disable_thinking_below_max_tokens,
    )


def _native_body(path: str, dialect: Dialect, body: Octets, *, is_ours: bool) -> Octets:
    """Return the body for an engine that serves the path itself.

    Args:
        is_ours: the router decides how long its models stay.
    """
    if path == "/v1/messages":
        from engine_router.dialects.keep_alive import forget_progress  # noqa: PLC0415 - see _translation

        return forget_progress(body)
    # How long a model stays is the router's to decide, which heeds the client's wish. Where nothing is said of it, the
    # daemon would keep a model that it has to load anew for five minutes.
    return kept_for_ever(body) if dialect is OLLAMA and is_ours else body


def _collected(path: str, body: Octets) -> Translation | None:
    """Return how an answer in one piece is asked for as a stream; None where it is not."""
    from engine_router.dialects.openai.collected_answer import CollectedAnswer  # noqa: PLC0415 - see _translation

    sent = as_stream(parse_object(body))
    return CollectedAnswer(path, to_json(sent)) if sent.get("stream") is True else None


def _translation(
    path: str,
    routed: Routed,
    target: Target,
    load_s: Callable[[], float],
    traits: Callable[[], EngineTraits],
) -> Translation:
    # Many routers never need one of these: they are imported, and take their memory, when they are.
    model, upstream = routed.model, target.upstream
    if path == "/v1/messages":
        from engine_router.dialects.anthropic import answers as anthropic_openai  # noqa: PLC0415
        from engine_router.dialects.keep_alive import forget_progress  # noqa: PLC0415

        data = parse_object(forget_progress(routed.body))
        return anthropic_openai.translate(path, data, model=model, upstream=upstream)
    if path == "/v1/responses":
        from engine_router.dialects.responses import answers as responses_openai  # noqa: PLC0415

        return responses_openai.translate(path, routed.data(), model=model, upstream=upstream)
    from engine_router.dialects.ollama import answers as ollama_openai  # noqa: PLC0415

    return ollama_openai.translate(
        path, routed.data(), model=model, upstream=upstream, traits=traits, load_s=load_s
    )


class _Footed:
    """A footer as a filter: only an answer that is text gets one."""

    def __init__(self, footer: Footer) -> None:
        self.feed, self.end = footer.feed, footer.end

    def begin(self, status: int, content_type: str, content_encoding: str = "") -> bool:
        kind = content_type.partition(";")[0].strip().lower()
        return status == 200 and content_encoding in ("", "identity") and kind in _FOOTED


_FOOTED = frozenset(("application/json", "text/event-stream", "application/x-ndjson"))
