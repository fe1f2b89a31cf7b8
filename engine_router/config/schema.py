"""The JSON Schema of `engines.toml`, generated from the configuration classes, for editors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from engine_router.config.kinds import kind_of
from engine_router.config.model import Config
from engine_router.config.options import options_of
from engine_router.config.values import shown


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) that a valid `engines.toml` satisfies."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "engine-router configuration (engines.toml)",
        **_of_class(Config),
    }
    some = [{"required": [key], "properties": {key: {"minProperties": 1}}} for key in ("engines", "peers")]
    return {**schema, "anyOf": some}


def _of_class(cls: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    properties: dict[str, Any] = {}
    needed: list[str] = []
    for field in options_of(cls):
        described = {"description": field.metadata["doc"], **_of_type(hints[field.name])}
        if field.default is attrs.NOTHING:
            needed.append(field.name)
        elif not isinstance(field.default, attrs.Factory) and field.default is not None:  # type: ignore[arg-type]
            described["default"] = list(field.default) if isinstance(field.default, tuple) else field.default
        properties[field.name] = described
    if "type" in properties:
        needed.append("type")
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": needed} if needed else schema


def _of_type(kind: Any) -> dict[str, Any]:
    if (known := kind_of(kind)) is not None:
        return _or_reference(known.schema)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _of_type(arguments[0])}
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _of_type(arguments[1])}
    if origin is Union or type(kind).__name__ == "UnionType":
        branches = [_of_type(argument) for argument in arguments if argument is not type(None)]
        return branches[0] if len(branches) == 1 else {"oneOf": branches}
    return _of_class(kind)


def _or_reference(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Allow `${env:NAME}`, whose value an editor does not know, wherever a string may stand."""
    found = dict(schema)
    if "pattern" in found:
        found["pattern"] = rf"\$\{{env:|{found['pattern']}"
    for key in ("anyOf", "items"):
        if key in found:
            inner = found[key]
            found[key] = [_or_reference(one) for one in inner] if key == "anyOf" else _or_reference(inner)
    return found


def reference() -> list[tuple[str, str, str, str]]:
    """List every option as (table, key, default, documentation), in the order of the classes."""
    rows: list[tuple[str, str, str, str]] = []
    _collect(Config, "", rows)
    return rows


def _collect(cls: type[Any], path: str, rows: list[tuple[str, str, str, str]]) -> None:
    hints = get_type_hints(cls)
    for field in options_of(cls):
        inner = _table_of(hints[field.name])
        if not inner or _holds_texts(hints[field.name]):
            rows.append((path, field.name, _default_of(field), str(field.metadata["doc"])))
        named = (
            get_origin(hints[field.name]) is not tuple
            and get_origin(hints[field.name]) is not None
            and not path
        )
        for table in inner:
            place = f"{path}.{field.name}".lstrip(".") + (".NAME" if named else "")
            _collect(table, place + (f" ({table.__name__})" if len(inner) > 1 else ""), rows)


def _default_of(field: attrs.Attribute[Any]) -> str:
    if field.default is attrs.NOTHING:
        return "required"
    if isinstance(field.default, attrs.Factory):  # type: ignore[arg-type]
        return "{}"
    return shown(list(field.default) if isinstance(field.default, tuple) else field.default)


def _holds_texts(kind: Any) -> bool:
    """Tell whether a list of tables may have strings instead."""
    items = get_args(kind)[:1]
    return any(kind_of(part) is not None for item in items for part in get_args(item))


def _table_of(kind: Any) -> list[type[Any]]:
    """Return the classes of the tables that a type holds, if it holds tables."""
    if attrs.has(kind):
        return [kind]
    found: list[type[Any]] = []
    for argument in get_args(kind):
        found.extend(_table_of(argument))
    return found
