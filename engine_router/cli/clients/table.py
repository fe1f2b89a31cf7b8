"""The table of clients: the variables, arguments and files by which each finds the router, with the source of each fact.

Texts may hold `{url}` (the router), `{v1}` (its OpenAI endpoint), `{key}`, `{model}` and `{context}` (tokens).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import field, frozen

PROVIDER: Final = "engine-router"


@frozen
class ClientFile:
    """A file of a client's own, in JSON, into which members are put; all others stay.

    Attributes:
        places: where it is, by the platform (`sys.platform`); "" is any other.
        content: the members. A list is added to; an entry of the same `identity` is replaced.
        identity: the member by which the entries of a list are told from each other.
    """

    places: Mapping[str, str]
    content: Any
    identity: str = "name"


@frozen
class Client:
    """A client.

    Attributes:
        title: what people call it.
        program: what is started.
        page: where it says how it is installed.
        variables: of the environment; None takes one away that would be stronger.
        json_variable: a variable whose value is JSON, and that value.
        arguments: before the person's own.
        default_arguments: where the person gives none.
        context_arguments: where the model's context is known.
        set_up: a command of the client's own that writes its settings, run before it, after a question.
        file: a file that is written before it is started, after a question.
        elsewhere: folders where its installer may put it beside the PATH.
        hint: what is left to do by hand.
    """

    title: str
    program: str
    page: str
    variables: Mapping[str, str | None] = field(factory=dict)
    json_variable: tuple[str, Any] | None = None
    arguments: tuple[str, ...] = ()
    default_arguments: tuple[str, ...] = ()
    context_arguments: tuple[str, ...] = ()
    set_up: tuple[str, ...] = ()
    file: ClientFile | None = None
    elsewhere: tuple[str, ...] = ("~/.local/bin",)
    hint: str = ""


_OPENAI: Final[Mapping[str, str | None]] = {"OPENAI_BASE_URL": "{v1}", "OPENAI_API_KEY": "{key}"}

CLIENTS: Final[Mapping[str, Client]] = {
    # https://code.claude.com/docs/en/settings#environment-variables. All tiers are one model: another costs a swap.
    "claude": Client(
        title="Claude Code",
        program="claude",
        page="https://code.claude.com/docs/en/setup",
        variables={
            "ANTHROPIC_BASE_URL": "{url}",
            "ANTHROPIC_AUTH_TOKEN": "{key}",
            "ANTHROPIC_API_KEY": None,
            "ANTHROPIC_MODEL": "{model}",
            "ANTHROPIC_DEFAULT_OPUS_MODEL": "{model}",
            "ANTHROPIC_DEFAULT_SONNET_MODEL": "{model}",
            "ANTHROPIC_DEFAULT_HAIKU_MODEL": "{model}",
            "CLAUDE_CODE_SUBAGENT_MODEL": "{model}",
            "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
        elsewhere=("~/.local/bin", "~/.claude/local"),
    ),
    # https://github.com/openai/codex/blob/main/docs/config.md: `-c` takes any key of config.toml, with a TOML value.
    "codex": Client(
        title="Codex",
        program="codex",
        page="https://github.com/openai/codex",
        arguments=(
            "-c",
            'model_provider="router"',
            "-c",
            'model_providers.router={{name="engine-router",base_url="{v1}",wire_api="responses",env_key="ROUTER_API_KEY"}}',
            "-m",
            "{model}",
        ),
        context_arguments=("-c", "model_context_window={context}"),
        variables={"ROUTER_API_KEY": "{key}"},
    ),
    # https://opencode.ai/docs/config: the variable is merged over all files.
    "opencode": Client(
        title="opencode",
        program="opencode",
        page="https://opencode.ai/docs",
        json_variable=(
            "OPENCODE_CONFIG_CONTENT",
            {
                "provider": {
                    "router": {
                        "npm": "@ai-sdk/openai-compatible",
                        "name": PROVIDER,
                        "options": {"baseURL": "{v1}", "apiKey": "{key}"},
                        "models": {"{model}": {"name": "{model}"}},
                    }
                },
                "model": "router/{model}",
                "small_model": "router/{model}",
            },
        ),
        elsewhere=("~/.opencode/bin", "~/.local/bin"),
    ),
    # https://aider.chat/docs/llms/openai-compat.html
    "aider": Client(
        title="aider",
        program="aider",
        page="https://aider.chat/docs/install.html",
        variables={"OPENAI_API_BASE": "{v1}", "OPENAI_API_KEY": "{key}"},
        arguments=("--model", "openai/{model}"),
    ),
    # https://github.com/QwenLM/qwen-code/blob/main/docs/users/configuration/auth.md
    "qwen": Client(
        title="Qwen Code",
        program="qwen",
        page="https://github.com/QwenLM/qwen-code",
        variables={**_OPENAI, "OPENAI_MODEL": "{model}"},
        arguments=("--auth-type", "openai", "--model", "{model}"),
    ),
    # https://github.com/charmbracelet/crush: internal/config, ProviderConfig and SelectedModel.
    "crush": Client(
        title="Crush",
        program="crush",
        page="https://github.com/charmbracelet/crush",
        file=ClientFile(
            places={"": "~/.config/crush/crush.json", "win32": "~/AppData/Local/crush/crush.json"},
            content={
                "providers": {
                    PROVIDER: {
                        "name": PROVIDER,
                        "type": "openai-compat",
                        "base_url": "{v1}",
                        "api_key": "{key}",
                        "models": [{"id": "{model}", "name": "{model}", "context_window": "{context}"}],
                    }
                },
                "models": {
                    "large": {"provider": PROVIDER, "model": "{model}"},
                    "small": {"provider": PROVIDER, "model": "{model}"},
                },
            },
            identity="id",
        ),
    ),
    # https://github.com/cline/cline: apps/cli, `cline auth`; the base URL is for `openai-compatible` only.
    "cline": Client(
        title="Cline",
        program="cline",
        page="https://docs.cline.bot/cline-cli/installation",
        set_up=(
            *("auth", "--provider", "openai-compatible", "--apikey", "{key}"),
            *("--modelid", "{model}", "--baseurl", "{v1}"),
        ),
    ),
    # https://block.github.io/goose/docs/guides/environment-variables, and its OpenAI provider (openai.rs).
    "goose": Client(
        title="goose",
        program="goose",
        page="https://block.github.io/goose/docs/getting-started/installation",
        variables={
            "GOOSE_PROVIDER": "openai",
            "GOOSE_MODEL": "{model}",
            "OPENAI_HOST": "{url}",
            "OPENAI_BASE_PATH": "v1/chat/completions",
            "OPENAI_API_KEY": "{key}",
        },
        default_arguments=("session",),
    ),
    # https://docs.github.com/copilot/how-tos/copilot-cli/customize-copilot/use-byok-models
    "copilot": Client(
        title="Copilot CLI",
        program="copilot",
        page="https://docs.github.com/copilot/how-tos/set-up/install-copilot-cli",
        variables={
            "COPILOT_PROVIDER_TYPE": "openai",
            "COPILOT_PROVIDER_BASE_URL": "{v1}",
            "COPILOT_PROVIDER_API_KEY": "{key}",
            "COPILOT_MODEL": "{model}",
        },
    ),
    # https://docs.ollama.com/integrations/vscode, and cmd/launch/vscode.go of Ollama: entries have vendor, name, url.
    "vscode": Client(
        title="VS Code",
        program="code",
        page="https://code.visualstudio.com/download",
        file=ClientFile(
            places={
                "": "~/.config/Code/User/chatLanguageModels.json",
                "darwin": "~/Library/Application Support/Code/User/chatLanguageModels.json",
                "win32": "~/AppData/Roaming/Code/User/chatLanguageModels.json",
            },
            content=[{"vendor": "ollama", "name": PROVIDER, "url": "{url}"}],
        ),
        hint="choose {model} in the chat's list of models, under Other Models",
    ),
    # https://docs.factory.ai/cli/byok/overview: customModels.
    "droid": Client(
        title="Droid",
        program="droid",
        page="https://docs.factory.ai/cli/getting-started/quickstart",
        file=ClientFile(
            places={"": "~/.factory/settings.json"},
            content={
                "customModels": [
                    {
                        "model": "{model}",
                        "displayName": "{model} (engine-router)",
                        "baseUrl": "{v1}",
                        "apiKey": "{key}",
                        "provider": "generic-chat-completion-api",
                    }
                ]
            },
            identity="displayName",
        ),
        hint="choose {model} (engine-router) with /model",
    ),
    # https://docs.openwebui.com/getting-started/env-configuration
    "open-webui": Client(
        title="Open WebUI",
        program="open-webui",
        page="https://docs.openwebui.com/getting-started/quick-start",
        variables={
            "ENABLE_OLLAMA_API": "False",
            "OPENAI_API_BASE_URL": "{v1}",
            "OPENAI_API_KEY": "{key}",
            "DEFAULT_MODELS": "{model}",
        },
        default_arguments=("serve",),
    ),
    # https://docs.ollama.com/faq: OLLAMA_HOST.
    "ollama": Client(
        title="Ollama's command line",
        program="ollama",
        page="https://ollama.com/download",
        variables={"OLLAMA_HOST": "{url}"},
        default_arguments=("run", "{model}"),
    ),
}
