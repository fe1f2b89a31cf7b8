"""`engine-router bench`: how long a model's start takes, how fast it reads and writes, and what memory it needs."""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from attrs import asdict, frozen

from engine_router.cli.address import RouterAddress, locate
from engine_router.cli.chat.answer import Answer, Unshown, receive
from engine_router.cli.client import get_status
from engine_router.cli.exit_codes import OK, CommandFailed
from engine_router.cli.formatting import gigabytes, seconds
from engine_router.cli.loading import Subject, find_subject
from engine_router.cli.one_model import get_model
from engine_router.cli.progress import wait_for
from engine_router.cli.terminal import Table, say, show_json

CONTEXTS: Final = (512, 4096)
"""Tokens of the prompts, unless others are asked for."""
# Words of the two prompts that tell how many tokens a word has.
_TRIED_WORDS: Final = (20, 60)
# Of a prompt and its answer that the chat template takes, about.
_TEMPLATE_TOKENS: Final = 64
# Short words that are one token, as a rule, for every tokenizer.
_WORDS: Final = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
]


@frozen
class Measured:
    """The measurements of prompts of one length, medians of the rounds.

    Attributes:
        tokens_in: of the prompt, as the engine counts them; None where it does not.
        tokens_out: that it wrote.
        first_s: seconds until the first piece of the answer.
        read_per_s, write_per_s: tokens a second.
        memory_bytes: main memory that its server had afterwards, at most; None where that cannot be seen from here.
    """

    tokens_in: int | None
    tokens_out: int | None
    first_s: float | None
    read_per_s: float | None
    write_per_s: float | None
    memory_bytes: int | None = None


def run(options: argparse.Namespace) -> int:
    """Measure a model and show what was found; the router remembers it.

    Raises:
        CommandFailed: the router or the model cannot answer, or no prompt fits into its context.
    """
    address = locate(options)
    model = get_model(address, options.model)
    lengths = _fitting(options.contexts or CONTEXTS, options.tokens, model)
    subject = find_subject(get_status(address), options.model)
    load_s = None if options.no_load else _load(address, subject, quiet=options.json)
    words_for = _words_for(address, options)
    found = [_measure(address, options, words_for(length)) for length in lengths]
    memory_bytes: int | None = get_model(address, options.model)["measured"]["footprint_bytes"]
    if options.json:
        rows = [asdict(each) for each in found]
        show_json({"model": model["id"], "load_s": load_s, "memory_bytes": memory_bytes, "prompts": rows})
        return OK
    heads = ("Prompt", "First token", "Reads", "Answer", "Writes", "Memory")
    seen = len(heads) if any(each.memory_bytes for each in found) else -1
    Table(heads[:seen], [_row(each)[:seen] for each in found]).show()
    for line in _summary(load_s, memory_bytes):
        say(line)
    if left_out := [length for length in options.contexts or CONTEXTS if length not in lengths]:
        words = ", ".join(f"{length:,}" for length in left_out)
        say(
            f"left out: {words} tokens (with the answer, more than the model's context of {model['context']:,})"
        )
    return OK


def _fitting(lengths: Sequence[int], answer: int, model: Mapping[str, Any]) -> list[int]:
    """Return the lengths of prompts that fit into a model's context together with an answer.

    Raises:
        CommandFailed: none does.
    """
    context = model["context"]
    if not isinstance(context, int):
        return list(lengths)
    fitting = [length for length in lengths if length + answer + _TEMPLATE_TOKENS <= context]
    if not fitting:
        words = f"{model['id']} has {context:,} tokens of context, in which no prompt of these fits"
        raise CommandFailed(f"{words}; give shorter ones with --contexts, or a shorter answer with --tokens")
    return fitting


def _load(address: RouterAddress, subject: Subject, *, quiet: bool) -> float:
    """Start the model anew; return how many seconds that took."""
    wait_for(address, "/admin/unload", subject.body, subject.pool, quiet=quiet)
    answer = wait_for(address, "/admin/load", {**subject.body, "wait": True}, subject.pool, quiet=quiet)
    return float(answer["duration_s"])


def _ask(address: RouterAddress, options: argparse.Namespace, words: int, tokens: int) -> Answer:
    """Ask for an answer to random words: a prompt whose very beginning no cache can know."""
    chosen = random.Random()  # noqa: S311 - words, not secrets
    text = f"{chosen.getrandbits(40):012} {' '.join(chosen.choices(_WORDS, k=words))}"
    body = {
        "model": options.model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = Answer()
    receive(address, body, answer, Unshown(), quiet=options.json)
    return answer


def _words_for(address: RouterAddress, options: argparse.Namespace) -> Callable[[int], int]:
    """Return what tells how many words make a prompt of so many tokens, by what two short ones have."""
    few, more = (_ask(address, options, words, 1).usage.get("prompt_tokens") for words in _TRIED_WORDS)
    if not isinstance(few, int) or not isinstance(more, int) or more <= few:
        return lambda length: length
    each = (more - few) / (_TRIED_WORDS[1] - _TRIED_WORDS[0])
    beside = few - _TRIED_WORDS[0] * each
    return lambda length: max(1, int((length - beside) / each))


def _measure(address: RouterAddress, options: argparse.Namespace, words: int) -> Measured:
    answers = [_ask(address, options, words, options.tokens) for _ in range(options.rounds)]
    return Measured(
        tokens_in=_median(answer.usage.get("prompt_tokens") for answer in answers),
        tokens_out=_median(answer.usage.get("completion_tokens") for answer in answers),
        first_s=_middle(_first_s(answer) for answer in answers),
        read_per_s=_middle(_read_per_s(answer) for answer in answers),
        write_per_s=_middle(answer.tokens_per_s for answer in answers),
        memory_bytes=_memory_bytes(address, options.model),
    )


def _memory_bytes(address: RouterAddress, model: str) -> int | None:
    """Return the main memory that a model's server has now, where it runs on this machine and uses no GPU."""
    present = get_model(address, model)["present"]
    if present is None or present["pid"] is None or present["base_url"] is None:
        return None
    from engine_router.memory import most_held_by  # noqa: PLC0415 - slow to import

    return most_held_by(present["pid"], urlsplit(present["base_url"]).port)


def _first_s(answer: Answer) -> float | None:
    return None if answer.first_at is None else answer.first_at - answer.asked_at


def _read_per_s(answer: Answer) -> float | None:
    """Return how fast the prompt was read: as the engine measured it, else until the first piece came."""
    said, tokens, first_s = (
        answer.timings.get("prompt_per_second"),
        answer.usage.get("prompt_tokens"),
        _first_s(answer),
    )
    if isinstance(said, (int, float)):
        return float(said)
    return tokens / first_s if isinstance(tokens, int) and first_s else None


def _middle(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _median(values: Iterator[object]) -> int | None:
    middle = _middle(float(value) for value in values if isinstance(value, int))
    return None if middle is None else round(middle)


def _row(measured: Measured) -> tuple[str, ...]:
    return (
        "?" if measured.tokens_in is None else f"{measured.tokens_in:,} tokens",
        "" if measured.first_s is None else seconds(measured.first_s),
        _rate(measured.read_per_s),
        "" if measured.tokens_out is None else f"{measured.tokens_out:,} tokens",
        _rate(measured.write_per_s),
        gigabytes(measured.memory_bytes) if measured.memory_bytes else "",
    )


def _rate(per_s: float | None) -> str:
    return "" if per_s is None else f"{per_s:,.0f} tokens/s" if per_s >= 100 else f"{per_s:.1f} tokens/s"


def _summary(load_s: float | None, memory_bytes: int | None) -> Iterator[str]:
    if load_s is not None:
        yield f"started in {seconds(load_s)}"
    if memory_bytes:
        yield f"took {gigabytes(memory_bytes)} of memory"
