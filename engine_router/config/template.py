"""The command of a template: an engine that is started once for each model, with what the model fills in."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Final

from attrs import define, evolve, frozen

from engine_router.config.engines import EngineConfig, StartedConfig
from engine_router.config.filled import filled_words
from engine_router.config.memories import gpus_of
from engine_router.config.model import Config, ModelConfig
from engine_router.config.values import expanded

PLACEHOLDERS: Final = ("port", "model", "path", "mmproj", "ctx", "args", "gpus")
"""What is filled in within `argv`, in braces."""

_ARGS: Final = "{args}"
_OPTIONAL: Final = ("mmproj", "ctx")
_PLACEHOLDER: Final = re.compile(r"\{(\w+)\}")
_SHELL: Final = re.compile(r"(?:^|[/\\])(?:ba|da|z|k|a)?sh(?:\.exe)?$")
_SCRIPT_OPTION: Final = re.compile(r"-[a-z]*c")
_ACTIVE: Final = re.compile(r"[$`\"\\]")  # what means something within double quotes


@frozen(kw_only=True)
class ModelArguments:
    """What one model fills into the command of its template.

    Attributes:
        path: file or folder of its weights; None where the model's name stands for it.
        mmproj: file of its projector for images.
        context_length: tokens of context that it is started with.
        args: words of its own.
        gpus: the numbers of the GPUs of its pools, such as `0,1`.
    """

    path: str | None = None
    mmproj: str | None = None
    context_length: int | None = None
    args: tuple[str, ...] = ()
    gpus: str | None = None

    @classmethod
    def of(cls, model: ModelConfig) -> ModelArguments:
        """Return those of a configured model."""
        return cls(
            path=model.path, mmproj=model.mmproj, context_length=model.context_length or None, args=model.args
        )

    def values(self, model: str) -> dict[str, str]:
        """Return the values of the placeholders, as far as there are any.

        Args:
            model: the name that the engine knows it by.
        """
        found = {"model": model, "path": model if self.path is None else str(expanded(self.path))}
        if self.mmproj is not None:
            found["mmproj"] = str(expanded(self.mmproj))
        if self.context_length is not None:
            found["ctx"] = str(self.context_length)
        if self.gpus is not None:
            found["gpus"] = self.gpus
        return found


NO_ARGUMENTS: Final = ModelArguments()


def is_template(engine: EngineConfig) -> bool:
    """Tell whether a process, a container or a unit is started once for each model."""
    words = " ".join(filled_words(engine))
    return "{model}" in words or "{path}" in words


def is_scanned(engine: EngineConfig) -> bool:
    """Tell whether an engine serves what is found in folders."""
    return isinstance(engine, StartedConfig) and bool(engine.scan)


@define
class TemplateModels:
    """What the models of one engine fill into its command.

    Attributes:
        engine: the engine's name.
        config: where its models are; another one once they have come and gone.
    """

    engine: str
    config: Config

    def arguments(self, upstream: str) -> ModelArguments:
        """Return those of a model, by the name that the engine knows."""
        model = self.config.models_by_upstream.get((self.engine, upstream))
        own = NO_ARGUMENTS if model is None else ModelArguments.of(model)
        return evolve(own, gpus=gpus_of(self.config, self.config.engines[self.engine], model))

    def names(self) -> list[str]:
        """Return the models of the file, by the names that the engine knows."""
        named = [upstream for engine, upstream in self.config.models_by_upstream if engine == self.engine]
        entries = self.config.models
        rest = [name for name in self.config.engines[self.engine].models if name not in entries]
        return list(dict.fromkeys((*named, *rest)))


def model_command(argv: Sequence[str], arguments: ModelArguments, values: Mapping[str, str]) -> list[str]:
    """Return a template's command for one model.

    An option whose `{mmproj}` or `{ctx}` has no value is left out together with its name: of `-c {ctx}` nothing
    stays. `{args}` becomes any number of words; where it stands nowhere, they are added at the end.
    """
    words = [word for index, word in enumerate(argv) if not _is_left_out(argv, index, values)]
    if not any(_ARGS in word for word in words):
        words.append(_ARGS)
    whole: list[str] = []
    for word in words:
        whole += arguments.args if word == _ARGS else [word.replace(_ARGS, shlex.join(arguments.args))]
    return fill_command(whole, values)


def _is_left_out(argv: Sequence[str], index: int, values: Mapping[str, str]) -> bool:
    """Tell whether a word has a placeholder without a value, or is the name of an option that has."""
    if _lacks_value(argv[index], values):
        return True
    following = argv[index + 1] if index + 1 < len(argv) else ""
    is_option = argv[index].startswith("-") and "=" not in argv[index] and index > 0
    return is_option and not following.startswith("-") and _lacks_value(following, values)


def _lacks_value(word: str, values: Mapping[str, str]) -> bool:
    return any(f"{{{name}}}" in word and name not in values for name in _OPTIONAL)


def fill_command(argv: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Return a command with its placeholders, such as `{port}`, filled in. Braces of other kinds stay.

    In the script of a shell (`bash -c SCRIPT`) a value stays what it is, whatever is in it: somebody else may have
    named the file.
    """
    program, *arguments = (
        _fill_script(word, values)
        if _is_script(argv, index)
        else _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), word)
        for index, word in enumerate(argv)
    )
    return [str(expanded(program)) if program.startswith("~") else program, *arguments]


def _is_script(argv: Sequence[str], index: int) -> bool:
    """Tell whether a word is what a shell is to run."""
    if index < 2 or not _SCRIPT_OPTION.fullmatch(argv[index - 1]):
        return False
    return _SHELL.search(argv[index - 2]) is not None


def _fill_script(script: str, values: Mapping[str, str]) -> str:
    """Fill in the placeholders of a shell's script, each quoted as its place in the script asks for."""
    whole, quote, at = "", "", 0
    for found in _PLACEHOLDER.finditer(script):
        before = script[at : found.start()]
        quote = _quote_after(before, quote)
        value = values.get(found[1])
        whole += before + (found[0] if value is None else _quoted(value, quote))
        at = found.end()
    return whole + script[at:]


def _quote_after(text: str, quote: str) -> str:
    """Return the quote that is open behind a piece of a script, given the one that was open ahead of it."""
    is_escaped = False
    for char in text:
        if is_escaped:
            is_escaped = False
        elif char == "\\" and quote != "'":
            is_escaped = True
        elif char in "'\"" and quote in ("", char):
            quote = "" if quote else char
    return quote


def _quoted(value: str, quote: str) -> str:
    if quote == "'":
        return value.replace("'", "'\\''")
    return _ACTIVE.sub(r"\\\g<0>", value) if quote else shlex.quote(value)
