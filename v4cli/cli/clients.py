"""What programs for coding need to be told so that they use a server of ours: by their environment, their flags and
files of the moment, never by files of the user's.

What each of them takes: code.claude.com/docs/en/settings and env-vars, developers.openai.com/codex/config-reference,
opencode.ai/docs/config, aider.chat/docs/config (dotenv, adv-model-settings).
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

NO_KEY = "none"  # what is sent where the server wants no key: some clients insist on one
ASSUMED = 200_000  # tokens of context that Claude Code takes for granted,
MILLION = 1_000_000  # or these, if the model's name says so
HOUR_MS = "3600000"


@dataclass(frozen=True)
class Place:
    """A server, what it serves, and a folder for files of the moment."""

    url: str
    model: str
    context: int  # tokens
    key: str
    folder: Path

    @property
    def api(self) -> str:
        return f"{self.url}/v1"

    def file(self, name: str, text: str) -> str:
        """The path of a new file that only the user can read."""
        path = self.folder / name
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
            out.write(text)
        return str(path)


@dataclass(frozen=True)
class Start:
    """Flags before those of the user, and what changes in the environment; None: the variable is removed."""

    flags: Sequence[str] = ()
    environment: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Client:
    """A program; `install` is the command that brings it here, `start(place, arguments)` what it has to be told."""

    program: str
    install: str
    start: Callable[[Place, Sequence[str]], Start]


def _claude(place: Place, arguments: Sequence[str]) -> Start:
    """The settings repeat the variables: those of the user's settings would go before the environment."""
    model = f"{place.model}[1m]" if place.context >= MILLION else place.model
    names = "ANTHROPIC_MODEL", "ANTHROPIC_SMALL_FAST_MODEL", "CLAUDE_CODE_SUBAGENT_MODEL"
    names += tuple(f"ANTHROPIC_DEFAULT_{size}_MODEL" for size in ("OPUS", "SONNET", "HAIKU"))
    variables = {
        "ANTHROPIC_BASE_URL": place.url,
        "ANTHROPIC_AUTH_TOKEN": place.key or NO_KEY,
        **dict.fromkeys(names, model),
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",  # another first line in every request would spoil the cache
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "API_TIMEOUT_MS": HOUR_MS,
    }
    if place.context < ASSUMED:
        variables["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] = str(place.context)
    flags = [] if _has(arguments, "--model") else ["--model", model]
    if not _has(arguments, "--settings"):
        flags += ["--settings", place.file("settings.json", json.dumps({"env": variables}))]
    others = ("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", "CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX")
    return Start(flags, variables | dict.fromkeys(others))


def _codex(place: Place, arguments: Sequence[str]) -> Start:
    provider = {"name": "v4", "base_url": place.api, "env_key": "V4_API_KEY", "wire_api": "responses"}
    settings = {
        "model_provider": "v4",
        "model": place.model,
        "model_context_window": place.context,
        "model_auto_compact_token_limit": place.context * 9 // 10,
        **{f"model_providers.v4.{name}": value for name, value in provider.items()},
    }
    flags = [word for name, value in settings.items() for word in ("-c", f"{name}={json.dumps(value)}")]
    return Start(flags, {"V4_API_KEY": place.key or NO_KEY})


def _opencode(place: Place, arguments: Sequence[str]) -> Start:
    """What the user says in the same variable stays, as far as it is about something else."""
    model = {
        "name": place.model, "reasoning": True, "tool_call": True, "interleaved": {"field": "reasoning_content"},
        "limit": {"context": place.context, "output": min(place.context // 2, 32_768)},
    }  # fmt: skip
    provider = {
        "npm": "@ai-sdk/openai-compatible", "name": "v4", "models": {place.model: model},
        "options": {"baseURL": place.api, "apiKey": place.key or NO_KEY},
    }  # fmt: skip
    said = _object(os.environ.get("OPENCODE_CONFIG_CONTENT", ""))
    providers = said.get("provider")
    chosen = f"v4/{place.model}"
    said |= {"provider": {**(providers if isinstance(providers, dict) else {}), "v4": provider}}
    return Start((), {"OPENCODE_CONFIG_CONTENT": json.dumps(said | {"model": chosen, "small_model": chosen})})


def _object(text: str) -> dict:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _aider(place: Place, arguments: Sequence[str]) -> Start:
    """A file of variables comes after those of the user's, which would go before the environment."""
    variables = {"OPENAI_API_BASE": place.api, "OPENAI_API_KEY": place.key or NO_KEY}
    about = {
        "max_input_tokens": place.context, "max_output_tokens": place.context, "max_tokens": place.context,
        "input_cost_per_token": 0, "output_cost_per_token": 0, "litellm_provider": "openai", "mode": "chat",
    }  # fmt: skip
    model = f"openai/{place.model}"
    flags = [] if _has(arguments, "--model") else ["--model", model]
    flags += ["--model-metadata-file", place.file("model.json", json.dumps({model: about}))]
    if not _has(arguments, "--env-file"):
        lines = (f"{name}={json.dumps(value)}\n" for name, value in variables.items())
        flags += ["--env-file", place.file("variables.env", "".join(lines))]
    return Start((*flags, "--no-show-model-warnings", "--no-check-update"), variables)


def _has(arguments: Sequence[str], flag: str) -> bool:
    return any(word == flag or word.startswith(f"{flag}=") for word in arguments)


CLIENTS = {
    "claude": Client("claude", "npm install -g @anthropic-ai/claude-code", _claude),
    "codex": Client("codex", "npm install -g @openai/codex", _codex),
    "opencode": Client("opencode", "npm install -g opencode-ai", _opencode),
    "aider": Client("aider", "python -m pip install aider-install && aider-install", _aider),
}
