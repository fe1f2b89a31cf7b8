"""What a client is told, with the router's address and a model put in."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from engine_router.cli.clients.table import Client


@frozen
class Values:
    """The values that are put in.

    Attributes:
        context: tokens; None where it is not known.
    """

    url: str
    key: str
    model: str
    context: int | None = None

    def put_into(self, data: Any) -> Any:
        """Return JSON data, or a text, with the values in it; a member whose value is not known is left out."""
        if isinstance(data, str):
            if data == "{context}":
                return self.context
            return data.format(
                url=self.url, v1=f"{self.url}/v1", key=self.key, model=self.model, context=self.context
            )
        if isinstance(data, dict):
            pairs = ((self.put_into(key), self.put_into(value)) for key, value in data.items())
            return {key: value for key, value in pairs if value is not None}
        return [self.put_into(value) for value in data] if isinstance(data, (list, tuple)) else data


@frozen
class Rendered:
    """What a client is told.

    Attributes:
        variables: of the environment; None takes one away.
        command: the program and its arguments.
        set_up: the command that is run before; empty where there is none.
        path: the file that is changed, and `content` what is put into it; None where there is none.
    """

    variables: dict[str, str | None]
    command: list[str]
    set_up: list[str]
    path: Path | None
    content: Any
    hint: str


def render(
    client: Client, values: Values, arguments: Sequence[str], platform: str = sys.platform
) -> Rendered:
    """Return what a client is told."""
    variables = {
        name: values.put_into(text) if text is not None else None for name, text in client.variables.items()
    }
    if client.json_variable is not None:
        name, content = client.json_variable
        variables[name] = json.dumps(values.put_into(content), ensure_ascii=False)
    own = (*client.arguments, *(client.context_arguments if values.context else ()))
    file = client.file
    return Rendered(
        variables=variables,
        command=[
            client.program,
            *values.put_into(own),
            *(arguments or values.put_into(client.default_arguments)),
        ],
        set_up=[client.program, *values.put_into(client.set_up)] if client.set_up else [],
        path=None if file is None else Path(file.places.get(platform, file.places[""])).expanduser(),
        content=None if file is None else values.put_into(file.content),
        hint=values.put_into(client.hint),
    )
