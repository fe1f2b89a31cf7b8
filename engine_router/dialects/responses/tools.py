"""The tools of OpenAI's `/v1/responses`, for engines that know functions only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import Factory, define, frozen

from engine_router.dialects.checks import flag_at, list_at, object_at, string_at
from engine_router.errors import BadRequest

CUSTOM_INPUT = "input"
"""The one parameter of a function that stands for a tool which takes free text."""

_CHOICES = ("none", "auto", "required")


@frozen
class Tool:
    """A tool as the client knows it.

    Attributes:
        namespace: the group of tools in which the client gave it, if any.
        is_custom: it takes free text, not JSON.
    """

    name: str
    namespace: str | None = None
    is_custom: bool = False


@define
class Toolbox:
    """The tools of a request. Chat completions know functions only, so every other tool is dressed as one.

    Attributes:
        functions: the tools in the words of chat completions.
        given: those tools as the client gave them; what the engine cannot be offered is not among them.
    """

    functions: list[dict[str, Any]] = Factory(list)
    given: list[Any] = Factory(list)
    _by_name: dict[str, Tool] = Factory(dict)

    def add(self, tools: object, place: str) -> None:
        """Add tools as a client gives them; the built-in ones, which OpenAI's servers run, are left out.

        Raises:
            BadRequest: they cannot be understood.
        """
        for number, entry in enumerate(list_at(tools, place)):
            tool = object_at(entry, where := f"{place}.{number}")
            if self._add(tool, where, None):
                self.given.append(tool)

    def named(self, name: str) -> Tool:
        """Return the tool that an engine calls by this name."""
        return self._by_name.get(name) or Tool(name)

    def keep(self, names: Sequence[str]) -> None:
        """Offer no other functions than these."""
        self.functions = [entry for entry in self.functions if entry["function"]["name"] in names]

    def _add(self, tool: Mapping[str, Any], place: str, namespace: str | None) -> bool:
        kind = tool.get("type")
        if kind == "namespace":
            return self._add_group(tool, place)
        if kind not in ("function", "custom"):
            return False
        name = string_at(tool.get("name"), f"{place}.name")
        known = Tool(name, namespace, is_custom=kind == "custom")
        function = _custom_function(tool) if known.is_custom else _function(tool, place)
        flat = flat_name(name, namespace)
        self.functions.append({"type": "function", "function": {"name": flat, **function}})
        self._by_name[flat] = known
        return True

    def _add_group(self, group: Mapping[str, Any], place: str) -> bool:
        name = string_at(group.get("name"), f"{place}.name")
        before = len(self.functions)
        for number, entry in enumerate(list_at(group.get("tools") or [], f"{place}.tools")):
            self._add(object_at(entry, where := f"{place}.tools.{number}"), where, name)
        return len(self.functions) > before


def flat_name(name: str, namespace: object) -> str:
    """Return the one name by which an engine knows a tool of a namespace."""
    if not isinstance(namespace, str) or not namespace:
        return name
    return f"{namespace.removesuffix('__')}__{name}"


def _function(tool: Mapping[str, Any], place: str) -> dict[str, Any]:
    function: dict[str, Any] = {"parameters": {"type": "object", "properties": {}}}
    if tool.get("parameters"):
        function["parameters"] = object_at(tool["parameters"], f"{place}.parameters")
    if tool.get("description") is not None:
        function["description"] = string_at(tool["description"], f"{place}.description")
    if tool.get("strict") is not None:
        function["strict"] = flag_at(tool["strict"], f"{place}.strict")
    return function


def _custom_function(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Dress a tool that takes free text as a function; its grammar can only be told, not enforced."""
    description = str(tool.get("description") or "")
    rules = tool.get("format")
    if isinstance(rules, dict) and rules.get("definition"):
        description += f"\n\n`{CUSTOM_INPUT}` must follow this {rules.get('syntax', 'lark')} grammar:\n{rules['definition']}"
    text = {"type": "string", "description": "The whole input of the tool, as plain text"}
    parameters = {
        "type": "object",
        "properties": {CUSTOM_INPUT: text},
        "required": [CUSTOM_INPUT],
        "additionalProperties": False,
    }
    return {"description": description.strip(), "parameters": parameters}


def tool_choice(choice: Any, tools: Toolbox) -> tuple[object, object]:
    """Return the choice as the answer shows it, and in the words of chat completions.

    Raises:
        BadRequest: it cannot be understood.
    """
    if choice is None:
        return "auto", "auto"
    if isinstance(choice, str) and choice in _CHOICES:
        return choice, choice
    if not isinstance(choice, dict):
        raise BadRequest('"tool_choice" must be none, auto, required or an object')
    if choice.get("type") in ("function", "custom"):
        name = flat_name(string_at(choice.get("name"), "tool_choice.name"), choice.get("namespace"))
        return choice, {"type": "function", "function": {"name": name}}
    if choice.get("type") == "allowed_tools":
        allowed = [
            object_at(each, "tool_choice.tools") for each in list_at(choice.get("tools"), "tool_choice.tools")
        ]
        tools.keep([flat_name(str(each.get("name")), each.get("namespace")) for each in allowed])
        return choice, choice["mode"] if choice.get("mode") in _CHOICES else "auto"
    return "auto", "auto"  # a built-in tool, which is not offered
