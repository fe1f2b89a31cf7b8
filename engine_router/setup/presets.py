"""Presets: a block of `engines.toml` for each kind of engine, with what is known of it, filled in for one model.

A preset is a TOML file in `presets/`: the table `[preset]`, a line `# ---`, and the block. In the block `<NAME>` and the
other words of `preset_text.PLACEHOLDERS` are filled in. A line whose placeholder has no value is left out, with the comment above
it.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Final

import attrs
import tomli
from attrs import frozen

from engine_router.config.unified import is_unified_machine
from engine_router.config.values import expanded
from engine_router.guards.limits import MAX_NAME_FILE_BYTES
from engine_router.models.scan.naming import plain, split_name
from engine_router.models.scan.places import CACHES
from engine_router.setup.elsewhere import name_of, values_of
from engine_router.setup.preset_text import PLACEHOLDER, filled_lines, with_notes

_PLACES: Final = "PATH", "FILE", "DIR", "REPO"
_FOLDER: Final = Path(__file__).with_name("presets")
_MARK: Final = "# ---\n"
_DOWNLOAD_S: Final = 3600
NO_KEYS: Final = {"API_KEY": "YOUR-KEY", "ADMIN_KEY": "YOUR-ADMIN-KEY"}
"""What stands where the keys of an engine belong, as long as they are not known."""
_KEY: Final = re.compile(r"""^(api_key|admin_key):[ \t]*["']?([^\s"'#]+)""", re.MULTILINE)
_REPOSITORY: Final = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_LOOKS_LIKE_FILE: Final = re.compile(r"^(?:[/~\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\])|\.(?:gguf|ya?ml|safetensors)$")


class PresetError(ValueError):
    """A block cannot be made: there is no such preset, or something is missing or does not fit. It says what to do."""


@frozen(kw_only=True)
class Note:
    """Words about an engine for whoever adds it.

    Attributes:
        text: the words.
        when: the trait of a machine on which they matter, or `no-keys` where the engine's keys are not known; empty
            for always.
    """

    text: str
    when: str = ""


@frozen(kw_only=True)
class Preset:
    """A block of the configuration for a kind of engine.

    Attributes:
        kind: what it is called.
        title: what the engine is called.
        summary: a line about it.
        name: what the engine is called in the configuration, unless the user says otherwise.
        block: the text with its placeholders.
        also: other words for the kind.
        needs: the options that must be given.
        port: the usual port of an engine that runs already.
        scanned: the kind that serves folders of models instead.
        keys_file: the file with the engine's keys, in the folder that `--path` names.
        sample: a model, to show the block.
        sample_model: its id, where it cannot be told from `sample`.
        notes: words for whoever adds it.
    """

    kind: str
    title: str
    summary: str
    name: str
    block: str
    also: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    port: int | None = None
    scanned: str = ""
    keys_file: str = ""
    sample: str = ""
    sample_model: str = ""
    notes: tuple[Note, ...] = ()

    @property
    def placeholders(self) -> frozenset[str]:
        """Those in its block."""
        return frozenset(found[1] or found[2] for found in PLACEHOLDER.finditer(self.block))

    @property
    def options(self) -> frozenset[str]:
        """The options that it can use."""
        found = self.placeholders
        options = {name.lower() for name in ("NAME", "MODEL", "PORT", "SCAN", "URL") if name in found}
        return frozenset(options | ({"path"} if found & {*_PLACES} or self.keys_file else set()))

    def sample_values(self) -> PresetValues:
        """Return values to show the block with."""
        model = self.sample_model or None
        if "scan" in self.needs:
            return PresetValues(model=model, scan=(self.sample,))
        if "url" in self.needs:
            return PresetValues(model=model, url=self.sample)
        return PresetValues(model=model, path=self.sample or None)


@frozen(kw_only=True)
class PresetValues:
    """What a block is filled in with, as the user gave it.

    Attributes:
        name: the engine's name.
        model: the model's id.
        path: file or folder of the model, or its repository.
        port: where the engine listens.
        scan: folders in which models are looked for.
        url: where a server elsewhere is.
    """

    name: str | None = None
    model: str | None = None
    path: str | None = None
    port: int | None = None
    scan: tuple[str, ...] = ()
    url: str | None = None

    def options(self) -> list[str]:
        """Return the names of those that were given."""
        return [name for name, value in attrs.asdict(self).items() if value]


@frozen(kw_only=True)
class Block:
    """A block that is filled in.

    Attributes:
        text: it, for the configuration.
        engine: the engine's name.
        model: the model's id; None where the engine or its folders say which models it has.
        notes: what to know about it on this machine.
        keys: keys in it that are nobody else's business.
    """

    text: str
    engine: str
    model: str | None
    notes: tuple[str, ...]
    keys: tuple[str, ...] = ()


def machine_traits() -> frozenset[str]:
    """Return what notes may depend on: `unified` where the GPU uses the main memory, and `cuda-unified` with CUDA."""
    if not is_unified_machine():
        return frozenset()
    return frozenset(("unified",) if sys.platform == "darwin" else ("unified", "cuda-unified"))


@cache
def presets() -> Mapping[str, Preset]:
    """Return every preset, by its kind."""
    return {file.stem: _read(file) for file in sorted(_FOLDER.glob("*.toml"), key=lambda file: file.stem)}


def find_preset(kind: str) -> Preset:
    """Return the preset that a word means.

    Raises:
        PresetError: none; those that are called nearly so are named.
    """
    names = {name.lower(): preset for preset in presets().values() for name in (preset.kind, *preset.also)}
    found = names.get(kind.lower()) or names.get(re.sub(r"[\s_]+", "-", kind.lower()))
    if found is not None:
        return found
    near = difflib.get_close_matches(kind.lower()[:60], names, n=1)
    hint = f"did you mean {names[near[0]].kind}?" if near else "engine-router presets lists them"
    raise PresetError(f"there is no preset '{kind}'; {hint}")


def preset_for(kind: str, given: PresetValues) -> tuple[Preset, PresetValues]:
    """Return the preset that a word means, and the values for it: a folder of models is scanned where one can be.

    Raises:
        PresetError: there is none, or it cannot use one of them.
    """
    preset = find_preset(kind)
    scanned = presets().get(preset.scanned) or preset
    if scanned is not preset and given.path is not None and not preset.placeholders & {"PATH", "DIR"}:
        form, folder = _place(given.path)
        if form == "DIR":
            given = attrs.evolve(given, path=None, scan=(*given.scan, folder))
    if given.scan:
        preset = scanned
    useless = [option for option in given.options() if option not in preset.options]
    if useless:
        known = ", ".join(f"--{option}" for option in sorted(preset.options))
        raise PresetError(f"{preset.kind} has no use for --{useless[0]}; it takes {known}")
    return preset, given


def missing(preset: Preset, given: PresetValues) -> list[str]:
    """Return the options that must be given and are not."""
    return [option for option in preset.needs if option not in given.options()]


def filled(
    preset: Preset, given: PresetValues, *, taken: Collection[str] = (), traits: Collection[str] = ()
) -> Block:
    """Fill a block in.

    Args:
        preset: the block.
        given: what it is filled in with.
        taken: names of engines that there are already; one that the user gave is used all the same.
        traits: what is known of the machine, see `machine_traits`.

    Raises:
        PresetError: something is missing, or does not fit.
    """
    lacking = missing(preset, given)
    if lacking:
        raise PresetError(f"{preset.kind} needs " + " and ".join(f"--{option}" for option in lacking))
    usual_name = (given.url and name_of(given.url)) or preset.name
    values: dict[str, object] = {
        "NAME": given.name or _free(usual_name, taken),
        "PORT": str(given.port or preset.port or "{port}"),
    }
    keys = _keys_in(preset, given.path) if preset.keys_file and given.path else {}
    if preset.keys_file:
        values.update({**NO_KEYS, **keys})
        traits = {*traits, *(() if keys else ("no-keys",))}
    elif given.path is not None:
        values.update(_place_values(preset, given.path))
    model = given.model or (None if given.path is None else model_id(given.path))
    values.update({"MODEL": model} if model else {})
    if given.url is not None:
        values.update(_url_values(given.url, given.model))
        traits = {*traits, *(("cloud",) if "PAID" in values else ())}
    values.update({"FIXED_PORT": given.port} if given.port else {})
    values.update({"SCAN": [*map(_scanned, given.scan)]} if given.scan else {})
    notes = [note.text for note in preset.notes if not note.when or note.when in traits]
    block = with_notes(preset.block, notes)
    if (place := values.get("FILE") or values.get("DIR")) is not None and not Path(str(place)).exists():
        notes.append(f"there is no file or folder {place} yet")
    return Block(
        text=filled_lines(block.splitlines(), values),
        engine=str(values["NAME"]),
        model=model if "MODEL" in preset.placeholders else None,
        notes=tuple(notes),
        keys=tuple(keys.values()),
    )


def model_id(path: str) -> str:
    """Return what a model is called that nobody has named, as the scan of folders would call it.

    >>> model_id("/models/Qwen3-8B-Q4_K_M.gguf"), model_id("Qwen/Qwen3-14B-AWQ"), model_id("ollama://smollm:135m")
    ('qwen3-8b:q4_k_m', 'qwen3-14b-awq', 'smollm:135m')
    """
    last = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
    repository, _, tag = last.partition(":")
    base, quantization = split_name(re.sub(r"\.(?:ya?ml|safetensors|bin)$", "", repository))
    tag = (tag or quantization).lower()
    return plain(base or repository) + (f":{tag}" if tag else "")


def _read(file: Path) -> Preset:
    head, _, block = file.read_text("utf-8").partition(_MARK)
    data = tomli.loads(head)["preset"]
    notes = tuple(Note(**note) for note in data.pop("notes", ()))
    lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
    return Preset(kind=file.stem, block=block, notes=notes, **{**data, **lists})


def _free(name: str, taken: Collection[str]) -> str:
    names = (name, *(f"{name}-{number}" for number in range(2, len(taken) + 3)))
    return next(one for one in names if one not in taken)


def _scanned(folder: str) -> str:
    """Return a folder to be scanned as it is wherever the router is started."""
    return folder if folder in CACHES or folder.startswith("~") else str(Path(folder).absolute())


def _place(path: str) -> tuple[str, str]:
    """Tell what a path is, `FILE`, `DIR` or `REPO`, and return it as the configuration has it.

    Raises:
        PresetError: it may be none of these.
    """
    if path.startswith("hf:"):
        return "REPO", path.removeprefix("hf:")
    if "://" in path:
        return "REPO", path
    whole = expanded(path)
    if whole.exists() or _LOOKS_LIKE_FILE.search(path):
        is_file = whole.is_file() or (not whole.exists() and bool(whole.suffix))
        return "FILE" if is_file else "DIR", str(whole.absolute())
    if _REPOSITORY.fullmatch(path):
        return "REPO", path
    raise PresetError(
        f"--path {path}: there is no such file or folder, nor is it a repository such as user/repo"
    )


def _place_values(preset: Preset, path: str) -> dict[str, object]:
    form, value = _place(path)
    usable = [one for one in _PLACES if one in preset.placeholders]
    if form not in usable and "PATH" not in usable:
        words = {"FILE": "a file", "DIR": "a folder", "REPO": "a repository"}
        wanted = " or ".join(words[one] for one in usable)
        hint = (
            f"; engine-router pull hf:{value} downloads it" if form == "REPO" and "://" not in value else ""
        )
        raise PresetError(f"--path {path} is {words[form]}, but {preset.kind} needs {wanted}{hint}")
    values: dict[str, object] = {"PATH": value, form: value}
    if form == "REPO":
        values["DOWNLOAD_S"] = _DOWNLOAD_S
    if "FOLDER" in preset.placeholders:
        parents = Path(value).parents
        values["FOLDER"] = str(next((one for one in parents if (one / "main.py").is_file()), parents[0]))
    return values


def _url_values(url: str, model: str | None) -> dict[str, object]:
    try:
        return {**values_of(url), **({"DISCOVER": False} if model else {})}
    except ValueError as error:
        raise PresetError(f"{url}: {error}") from None


def _keys_in(preset: Preset, folder: str) -> dict[str, str]:
    """Return the keys of an engine, from its own file.

    Raises:
        PresetError: they are not there.
    """
    file = expanded(folder) / preset.keys_file
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_NAME_FILE_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise PresetError(f"--path {folder}: {file} cannot be read: {error.strerror or error}") from None
    found = {key.upper(): value for key, value in _KEY.findall(text)}
    if not found:
        raise PresetError(f"--path {folder}: there are no keys in {file}")
    return found
