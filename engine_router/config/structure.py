"""Reading of plain TOML data into the configuration classes, with every fault named by its path."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar, get_args

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, override

from engine_router.config.any_engine import ENGINE_TYPES
from engine_router.config.engines import EngineConfig
from engine_router.config.faults import KEYS_OF_CLIENTS, Fault, close, is_explained, is_private, quoted
from engine_router.config.kinds import PLAIN, HeaderValue, VariableValue, kind_of
from engine_router.config.misplaced import synonym_of, table_of, type_of
from engine_router.config.options import options_of
from engine_router.config.values import Unfit, read_header_name, shown

T = TypeVar("T")
_TEXTS: Sequence[Any] = (str, HeaderValue, VariableValue)


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)

    def read_value(value: Any, annotation: Any) -> Any:
        return kind.read(value) if (kind := kind_of(annotation)) else value

    def read_list(value: Any, annotation: Any) -> Any:
        return _read_list(converter, value, annotation)

    def read_entry(value: Any, annotation: Any) -> Any:
        text, table = get_args(annotation)
        return converter.structure(value, table if isinstance(value, dict) else text)

    def read_mapping(value: Any, annotation: Any) -> Any:
        return _read_mapping(converter, value, annotation)

    for plain in PLAIN:
        converter.register_structure_hook(plain, read_value)
    converter.register_structure_hook_func(_is_literal, _read_literal)
    converter.register_structure_hook_func(_is_list, read_list)
    converter.register_structure_hook_func(_is_text_or_table, read_entry)
    converter.register_structure_hook_func(_is_mapping, read_mapping)
    converter.register_structure_hook_func(lambda annotation: kind_of(annotation) is not None, read_value)
    converter.register_structure_hook_factory(attrs.has, lambda cls: _table_reader(converter, cls))
    return converter


def _is_literal(kind: Any) -> bool:
    return getattr(kind, "__origin__", None) is Literal


def _is_list(kind: Any) -> bool:
    return getattr(kind, "__origin__", None) is tuple


def _is_text_or_table(kind: Any) -> bool:
    parts = get_args(kind)
    return len(parts) == 2 and kind_of(parts[0]) is not None and attrs.has(parts[1])


def _is_mapping(kind: Any) -> bool:
    return getattr(kind, "__origin__", None) is not None and issubclass(dict, kind.__origin__)


def _read_literal(value: Any, kind: Any) -> Any:
    choices = get_args(kind)
    if isinstance(value, str) and value in choices:
        return value
    near = close(value, choices)
    words = f"expected {' or '.join(shown(choice) for choice in choices)}"
    raise Unfit(words, value, f"; did you mean {shown(near)}?" if near else "")


def _read_list(converter: cattrs.Converter, value: Any, kind: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise Unfit("expected a list", value)
    item_kind = get_args(kind)[0]
    return tuple(_each(converter, [(f"[{index}]", item) for index, item in enumerate(value)], item_kind))


def _read_mapping(converter: cattrs.Converter, value: Any, kind: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unfit("expected a table", value)
    item_kind = get_args(kind)[1]
    places = [(f".{quoted(key)}", item) for key, item in value.items()]
    if item_kind == HeaderValue:
        for key in value:
            read_header_name(key)
    return dict(zip(value, _each(converter, places, item_kind), strict=True))


def _each(converter: cattrs.Converter, places: Sequence[tuple[str, Any]], kind: Any) -> list[Any]:
    """Read every item; raise all their faults together, each under its own place."""
    items: list[Any] = []
    faults: list[Exception] = []
    for place, value in places:
        try:
            if isinstance(value, dict) and value and kind in _TEXTS:
                whole = quoted(f"{place.lstrip('.')}.{next(iter(value))}")
                raise ValueError(  # noqa: TRY301 - one kind of fault for the walker
                    f"expected a string in quotes, got a table; a key with a dot has to be in quotes: {whole}"
                )
            items.append(converter.structure(value, kind))
        except Exception as error:  # noqa: BLE001 - whatever cattrs raises becomes a fault with a path
            faults.append(_Placed(place, error))
    if faults:
        raise cattrs.BaseValidationError("faults", faults, object)
    return items


class _Placed(Exception):
    """An error and the place, relative to its surroundings, where it happened."""

    def __init__(self, place: str, error: Exception) -> None:
        super().__init__(place)
        self.place = place
        self.error = error


def _table_reader(converter: cattrs.Converter, cls: type[Any]) -> Any:
    """Wrap cattrs' reader of a table: say so plainly when something else than a table was given."""
    no_options: dict[str, Any] = {
        field.name: override(omit=True) for field in attrs.fields(cls) if field not in options_of(cls)
    }
    read = make_dict_structure_fn(
        cls, converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True, **no_options
    )

    def read_table(value: Any, kind: Any) -> Any:
        if not isinstance(value, dict):
            raise Unfit("expected a table", value)
        return read(value, kind)

    return read_table


_CONVERTER = _make_converter()


def read_table(value: Any, cls: type[T], path: str) -> tuple[T | None, list[Fault]]:
    """Read one table. Returns the object, or None and every fault in it with its full path."""
    try:
        return _CONVERTER.structure(value, cls), []
    except Exception as error:  # noqa: BLE001 - every kind of validation error is walked into faults
        return None, list(_walk(error, path, cls))


def read_tables(value: Any, cls: type[T], path: str) -> tuple[list[T | None], list[Fault]]:
    """Read a list of tables. Returns an object for each, or None where it has faults, and all these faults."""
    if not isinstance(value, list):
        return [], [(path, f"expected a list of tables, [[{path}]], got {shown(value)}")]
    read = [read_table(item, cls, f"{path}[{index}]") for index, item in enumerate(value)]
    return [found for found, _ in read], [fault for _, faults in read for fault in faults]


def read_engine(value: Any, path: str) -> tuple[EngineConfig | None, list[Fault]]:
    """Read one engine's table; its `type` says of which class."""
    if not isinstance(value, dict):
        return None, [(path, f"expected a table, got {shown(value)}")]
    kind = value.get("type")
    choices = ", ".join(shown(name) for name in ENGINE_TYPES)
    if kind is None:
        return None, [(f"{path}.type", f"missing; one of {choices}")]
    if not isinstance(kind, str) or kind not in ENGINE_TYPES:
        near = type_of(kind) or close(kind, list(ENGINE_TYPES))
        hint = f"; did you mean {shown(near)}?" if near else ""
        return None, [(f"{path}.type", f"expected one of {choices}, got {shown(kind)}{hint}")]
    if kind == "container" and isinstance(value.get("compose"), str):
        from engine_router.config.compose import service_options  # noqa: PLC0415 - it reads YAML, and few need that

        try:
            value = _over(service_options(value["compose"]), value)
        except ValueError as error:
            return None, [(f"{path}.compose", str(error))]
    return read_table(value, ENGINE_TYPES[kind], path)


def _over(service: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a service, and over them an engine's own. Tables of both are put together."""
    if "ports" in own or "command" in own or "base_url" in own:
        service.pop("base_url", None)  # it follows from ports
    merged: dict[str, Any] = {
        key: {**service[key], **own[key]}
        for key in ("env", "host_config")
        if isinstance(own.get(key), dict) and key in service
    }
    return {**service, **own, **merged}


def _walk(error: Exception, path: str, cls: type[Any] | None = None) -> Iterator[Fault]:
    """Yield the faults inside an error of cattrs, each with its path."""
    if isinstance(error, _Placed):
        yield from _walk(error.error, path + error.place)
    elif isinstance(error, cattrs.ClassValidationError):
        for inner in error.exceptions:
            yield from _walk(inner, path + _place_of(inner), error.cl)
    elif isinstance(error, cattrs.BaseValidationError):
        for inner in error.exceptions:
            yield from _walk(inner, path, cls)
    elif isinstance(error, cattrs.ForbiddenExtraKeysError):
        known = [field.name for field in options_of(error.cl)]
        for key in sorted(error.extra_fields):
            if not is_explained():
                hidden = is_private(re.findall(r"[\w-]+", path))
                yield path if hidden else f"{path}.{quoted(key)}".lstrip("."), "unknown key"
                continue
            near, table = synonym_of(key, known) or close(key, known), table_of(key, error.cl)
            hint = f"; did you mean {near}?" if near else f"; known keys: {', '.join(known)}"
            hint = f"; it belongs to {table}" if table else hint
            is_shown = near or not is_private(re.findall(r"[\w-]+", path))
            yield f"{path}.{quoted(key)}".lstrip(".") if is_shown else path, f"unknown key{hint}"
    elif isinstance(error, KeyError):
        yield path, f"missing; it is required ({_summary_of(cls, str(error.args[0]))})"
    else:
        yield _discreet(path, error)


def _discreet(path: str, error: Exception) -> Fault:
    """Return a fault that repeats no secret: no value of an option that may hold one, and no key of a client."""
    if not is_private(re.findall(r"(?<=\.)[\w-]+", path)):
        return path, str(error)
    before, table, key = path.partition(f".{KEYS_OF_CLIENTS}")
    return (
        f"{before}{table}" if key else path,
        error.discreet if isinstance(error, Unfit) else str(error),
    )


def _place_of(error: BaseException) -> str:
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, cattrs.AttributeValidationNote):
            return f".{note.name}"
    if isinstance(error, KeyError):
        return f".{error.args[0]}"
    return ""


def _summary_of(cls: type[Any] | None, name: str) -> str:
    """Return the first sentence of an option's documentation, to be put into parentheses."""
    doc = str(getattr(attrs.fields_dict(cls).get(name), "metadata", {}).get("doc", "")) if cls else ""
    first = doc.partition(". ")[0].rstrip(".")
    return first[:1].lower() + first[1:] or name
