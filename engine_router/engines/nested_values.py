"""Values in nested tables, each by the keys that lead to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_router.config.values import shown

Keys = tuple[str, ...]


def with_settings(data: Any, settings: Mapping[Keys, object]) -> Any:
    """Return data with values set; the data itself stays as it is."""
    whole: Any = {} if data is None else dict(data) if isinstance(data, dict) else data
    for keys, value in settings.items():
        table: Any = whole
        for index, key in enumerate(keys):
            if not isinstance(table, dict):
                place = f"{shown('.'.join(keys[:index]))} in it is" if index else "is"
                raise ValueError(f"{place} no mapping of keys to values")  # noqa: TRY004 - of the text, not of an argument
            name = next((each for each in reversed(table) if str(each) == key), key)
            if index == len(keys) - 1:
                table[name] = value
            else:
                inner = table.get(name)  # what an alias leads to is another's as well: a copy is changed
                table[name] = {} if inner is None else dict(inner) if isinstance(inner, dict) else inner
                table = table[name]
    return whole


def has_setting(data: object, keys: Keys, value: object) -> bool:
    """Tell whether data has a value, of its very kind, at the end of some keys."""
    for key in keys:
        if not isinstance(data, dict):
            return False
        name = next((each for each in reversed(data) if str(each) == key), None)
        if name is None:
            return False
        data = data[name]
    return repr(data) == repr(value)
