"""The table of options: what `v4 run`, `v4 chat`, `v4 rollout` and `v4 serve` may be told, each option once.

An entry is a field of a frozen dataclass: its type, and by `option` its default, what it means, its flags, the values
it may have, whether it is a setting and whether /set may change it. Each concern (how to answer, what may run, ...) has
one dataclass, which is passed on as it is to whoever is concerned; RunOptions, ChatOptions and RolloutOptions say what
a command has. All else is made from this: Typer's parameters and help (cli/parameters.py), settings and V4_* variables
(settings.py), /set (repl/actions.py), the table in docs/settings.md (make options).
"""

import importlib.util
from dataclasses import MISSING, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from v4cli.entries import Switch, Valid, entries, option, part
from v4cli.errors import UsageError

MAX_ROUNDS = 50  # turns of the model per question, unless told


class Mode(StrEnum):
    """What runs without a question."""

    ASK = "ask"  # reading
    EDITS = "edits"  # reading and editing
    PLAN = "plan"  # reading; nothing else is even asked about
    ALL = "all"  # everything


# -- concerns --------------------------------------------------------------------------------------------------


def _thinking(value: str) -> dict[str, Any]:
    return {"thinking": value != "off", "effort": "max" if value == "max" else None}


def _loops(default: str) -> Any:
    return option(
        "What becomes of an answer whose last 2,000 tokens are one passage of at most 200, over and over: stop it, or "
        "keep it going.",
        default=default, choices=("stop", "keep"), setting="project", live=True,
    )  # fmt: skip


@dataclass(frozen=True)
class Format:
    """An answer that is to be JSON: by a schema, which whoever asks has at `at`. `strict`: one that cannot be kept to
    in all that it says is refused."""

    schema: dict
    at: str
    strict: bool = False


@dataclass(frozen=True)
class Options:
    """How to answer. None means: what the release and its generation_config say. UsageError for what cannot be."""

    thinking: bool = option(
        "Think before answering: off, on, or max for the highest effort.", default="on", name="think", kind=str,
        choices=("off", "on", "max"), setting="project", gives=_thinking,
        switches=(
            Switch("--think", "on", "Think before answering (default of v4 chat)."),
            Switch("--no-think", "off", "Answer directly (default of v4 run and v4 rollout)."),
            Switch("--think-max", "max", "Think with the highest effort."),
        ),
    )  # fmt: skip
    effort: str | None = None  # of thinking: "max", or what is usual
    temperature: float | None = option(
        "Temperature; 0 is greedy. Default: the release's.", name="temp", setting="project", live=True,
        valid=Valid(lambda value: 0 <= value <= 100, "between 0 and 100"),
    )  # fmt: skip
    top_p: float | None = option(
        "Nucleus sampling. Default: the release's.", setting="project", live=True,
        valid=Valid(lambda value: 0 < value <= 1, "above 0 and at most 1"),
    )  # fmt: skip
    top_k: int = option(
        "Keep the k likeliest tokens; 0 is off.", default=0, setting="project", live=True,
        valid=Valid(lambda value: value >= 0, "0 (off) or positive"),
    )  # fmt: skip
    min_p: float = option(
        "Drop tokens below this share of the likeliest; 0 is off.", default=0.0, setting="project", live=True,
        valid=Valid(lambda value: 0 <= value < 1, "at least 0 and below 1"),
    )  # fmt: skip
    seed: int | None = option(
        "Same seed, same answer.", live=True, valid=Valid(lambda value: 0 <= value < 2**63, "between 0 and 2^63 - 1")
    )
    max_tokens: int | None = option(
        "Most tokens of an answer.", "--max-tokens", "-n", least=1, setting="project", live=True
    )
    stop: tuple[str, ...] = option("End the answer at this text; may be repeated.", default=(), text=True, live=True)
    constrain: bool = option(
        "Let a grammar keep tool calls well-formed (needs v4cli[grammar]).", default=False, setting="project", live=True
    )
    loops: str = _loops("keep")
    format: Format | None = None  # what Shape says, once it is read
    top_logprobs: int | None = None  # of each token of the answer, how many others are told; None: nothing of them

    def __post_init__(self) -> None:
        for entry in entries(Options):
            if not entry.gives and (fault := entry.fault(getattr(self, entry.field))):
                hint = f"{entry.flag} {entry.choices[0]}" if entry.choices else f"{entry.flag}: {entry.help}"
                raise UsageError(f"{entry.field} {fault}", hint)
        if self.constrain and importlib.util.find_spec("llguidance") is None:
            raise UsageError("--constrain needs llguidance", "pip install 'v4cli[grammar]'")


@dataclass(frozen=True)
class Shape:
    """What an answer must be. chat/formats.py makes a Format of it."""

    format: str | None = option("json: the answer is a JSON object (needs v4cli[grammar]).", choices=("json",))
    schema: str | None = option(
        "The answer is JSON by this schema: a file, JSON, or fields like 'name, age int, tags list' (needs "
        "v4cli[grammar]).",
        metavar="FILE|JSON|FIELDS", text=True,
    )  # fmt: skip


@dataclass(frozen=True)
class Said:
    """What the user says first, and which conversation it belongs to."""

    prompt: tuple[str, ...] = option(
        "The prompt, in quotes or not; text on stdin is put before it.", default=(), argument=True, text=True
    )
    files: tuple[str, ...] = option(
        "Let the model read a file, all of a folder that git does not ignore, what matches a pattern in quotes, or "
        "stdin (-). Repeatable.",
        "--file", "-f", default=(), metavar="FILE|FOLDER|PATTERN",
    )  # fmt: skip
    template: str | None = option(
        "Say what is in this file of your templates (v4 help templates), whose $input is all the rest.", "--template",
        "-t", metavar="NAME",
    )  # fmt: skip
    variables: tuple[str, ...] = option(
        "A variable of the template. Repeatable.", "--var", default=(), text=True, metavar="NAME=VALUE"
    )
    go_on: bool = option("Go on with the conversation used last.", "--continue", "-c", default=False)
    resume: str | None = option("Go on with this one (v4 logs).", "--resume", "-r", metavar="ID")
    no_log: bool = option("Do not keep the conversation.", default=False, setting="user")


@dataclass(frozen=True)
class ToolUse:
    """Which tools the model has, and which of its calls run."""

    tools: str | None = option("Tools the model may call.", setting="chat")
    approve: str | None = option(
        "Calls that run without a question: ask (of tools that read; default), edits, plan (reading, no more), all.",
        choices=tuple(Mode), setting="chat",
    )  # fmt: skip
    network: bool = option("Let what the model runs in the sandbox use the network.", default=False, setting="chat")
    max_rounds: int | None = option(f"Most turns of the model for a question. Default: {MAX_ROUNDS}.", least=1)


@dataclass(frozen=True)
class Display:
    """What is shown beside the answer."""

    hide_thinking: bool = option("Do not print the thinking.", default=False, setting="project")
    stats: bool = option("Print counts and speeds after an answer.", default=False, setting="project")


@dataclass(frozen=True)
class Loading:
    """How a model is loaded, and where its cache is; or who else has it."""

    engine: str | None = option(
        "Address of a server that has the model and computes, like http://HOST:8000: v4 serve, vLLM or SGLang. Its key "
        "is V4_API_KEY.",
        metavar="URL", setting="user", variable="V4_ENGINE",
    )  # fmt: skip
    backend: str | None = option(
        "What computes: triton (a GPU), cpu (int8 kernels) or reference (plain torch). Default: triton where v4 doctor "
        "has found that the GPU computes right, else cpu.",
        choices=("triton", "cpu", "reference"), setting="user",
    )  # fmt: skip
    numerics: str | None = option(
        "Of the reference: exact (fp32; default) or official (simulated quantization).", choices=("exact", "official")
    )
    ram: str | None = option(
        "Memory to use, like 12G; experts that do not fit are read on demand.", setting="user", variable="V4_RAM"
    )
    kv_dir: Path | None = option(
        "Keep the KV cache in a file in this folder, so that it may exceed the RAM.", setting="user",
        variable="V4_KV_DIR",
    )  # fmt: skip
    gpu: int | None = option(
        "Number of the GPU, of those that CUDA_VISIBLE_DEVICES leaves. Default: 0.", least=0, setting="user"
    )
    vram: str | None = option(
        "Memory of the GPU to use, like 20G. Default: what is free less a margin.", setting="user"
    )
    chunk: int | None = option(
        "Tokens of a prompt that a GPU computes at a time: more are faster and take more of its memory. Default: by "
        "its memory.",
        least=64, most=65536, setting="user",
    )  # fmt: skip
    kv_host: bool = option(
        "Keep KV entries that tokens choose from in memory of the host: room on the GPU for long contexts.",
        default=False, setting="user",
    )  # fmt: skip
    dense: str | None = option(
        "Dense weights on a GPU: nf4 is smaller and less exact (bitsandbytes). Default: as stored.",
        choices=("stored", "nf4"), setting="user",
    )  # fmt: skip
    drafts: str = option(
        "Guess tokens and verify several in a step: by what followed the same tokens before (ngram), by the draft "
        "model that came with the weights (model), by both where it pays (auto), or off. Answers are the same.",
        default="auto", choices=("auto", "ngram", "model", "off"), setting="user", live=True,
    )  # fmt: skip
    local: bool = option("Load the model here, even if a server of this machine has it (v4 ps).", default=False)
    no_cache: bool = option("Neither use nor store computed contexts (v4 contexts).", default=False, setting="user")


def _model(**more: Any) -> Any:
    shown = "the one of v4 config; the pulled model if exactly one is complete; nano"
    flags = () if more.get("argument") else ("--model", "-m")
    return option("A name from v4 ls, or a folder.", *flags, setting="user", shown_default=shown, **more)


def _system() -> Any:
    return option("System prompt.", "--system", "-s", default="", setting="user", text=True)


def _json() -> Any:
    return option("Print one JSON object.", "--json", default=False)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What all rollouts of an output folder have in common."""

    model: str = _model(default=MISSING)
    tool_use: ToolUse = part(
        tools={"default": "all", "help": "nano, read, edit, all, or names. A task may say otherwise."},
        approve=None, network=None,
        max_rounds={"default": MAX_ROUNDS, "help": "Most turns of the model in a rollout."},
    )  # fmt: skip
    timeout_s: float = option(
        "Seconds a rollout may take, and its check again.", name="timeout", default=600.0, least=0.1
    )
    answer: Options = part(
        think={"default": "off"},
        max_tokens={"flags": ("--max-tokens",), "help": "Most tokens of a turn."},
        seed={"default": 0, "help": "Every rollout's seed is made from it, its task and its number."},
    )


# -- commands --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What `v4 run` is told."""

    model: str | None = _model()  # None: that of the conversation, else the one of the settings
    said: Said = part()
    system: str = _system()
    shape: Shape = part()
    out: Path | None = option("Write the answer to this file, not to stdout.", "--out", "-o", metavar="FILE")
    output_format: str | None = option("text, json or stream-json.", choices=("text", "json", "stream-json"))
    as_json: bool = _json()
    logprobs: int | None = option(
        "With --json: of each token of the answer its log-probability, and so many of the likeliest.", least=0, most=20
    )
    answer: Options = part(think={"default": "off"}, loops={"default": "stop"})
    tool_use: ToolUse = part(
        tools={
            "metavar": "NAMES|FILE.json",
            "help": "Tools the model may use here: nano, read, edit, all, mcp, or names. A file has schemas: calls are "
            "only printed.",
        },
        max_rounds={"help": f"Most turns of the model; exit 6 there. Default: {MAX_ROUNDS}."},
    )
    display: Display = part()
    no_stream: bool = option("Print the answer when it is complete.", default=False)
    loading: Loading = part()


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """What `v4 chat` is told."""

    model: str | None = _model()  # None: that of the conversation, else the one of the settings
    said: Said = part()
    system: str = _system()
    shape: Shape = part()
    plain: bool = option("Line by line: for screen readers, and in pipes.", default=False)
    answer: Options = part(loops={"default": "stop"})
    tool_use: ToolUse = part(
        tools={
            "help": "Tools the model may call: names, or read, edit, all, nano, mcp, none. Default: all,mcp; nano's "
            "own."
        }
    )
    display: Display = part()
    loading: Loading = part()


@dataclass(frozen=True, kw_only=True)
class RolloutOptions:
    """What `v4 rollout` is told."""

    tasks: Path = option("One task per line (docs/terminal.md).", argument=True, default=MISSING, metavar="TASKS.jsonl")
    out: Path = option("Folder of the trajectories, one JSON file each.", default=MISSING, metavar="DIR")
    n: int = option("Rollouts of each task.", default=1, least=1)
    jobs: int = option("At a time, on one loaded model.", default=1, least=1, most=256)
    conditions: Conditions = part()
    loading: Loading = part(
        backend=None, numerics=None, kv_dir=None, gpu=None, vram=None, chunk=None, kv_host=None, dense=None,
        no_cache=None,
    )  # fmt: skip
    as_json: bool = _json()


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What `v4 serve` is told."""

    model: str = _model(argument=True, metavar="MODEL", default=MISSING)
    host: str = option("Address to listen at; others than this machine's own want --api-key.", default="127.0.0.1")
    port: int = option("Port; 0 is any that is free.", default=8000, least=0, most=65535)
    api_key: str | None = option("What clients must send as their key. Default: any or none.", variable="V4_API_KEY")
    sessions: int = option("Contexts kept in memory, and answers at a time.", default=8, least=1, most=256)
    idle: str | None = option(
        "Give the model's memory back after so long without a request, like 30m; the next request loads it again. "
        "Default: never."
    )
    loops: str = _loops("stop")
    print_unit: bool = option("Print a systemd unit for this server and exit.", default=False)
    loading: Loading = part(engine=None, local=None)


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """What `v4 launch` is told."""

    client: str = option("claude, codex, opencode or aider.", argument=True, metavar="CLIENT", default=MISSING)
    arguments: tuple[str, ...] = option(
        "After --, what the client itself is told.", argument=True, metavar="-- ARGUMENTS", default=()
    )
    model: str | None = _model()  # None: what is served, else the one of the settings
    loading: Loading = part(
        engine={"help": "Address of a server to use, like http://HOST:8000. Its key is V4_API_KEY."}, local=None
    )


COMMANDS: dict[str, type] = {
    "run": RunOptions, "chat": ChatOptions, "rollout": RolloutOptions, "serve": ServeOptions, "launch": LaunchOptions,
}  # fmt: skip
