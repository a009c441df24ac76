"""`v4 run`: one prompt in, one answer out."""

import json
import signal
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from v4cli import jsonfile, paths
from v4cli.chat.parser import End, Text, Thinking, ToolCallEnd
from v4cli.cli import output, sessions
from v4cli.cli.progress import Prefill
from v4cli.errors import Exit, RequestError, UsageError

FORMATS = ("text", "json", "stream-json")
MAX_TEXT_BYTES = 64 << 20


@dataclass(frozen=True)
class RunRequest:
    """The options of `v4 run`, as typed."""

    prompt: str | None
    file: Path | None
    system: str
    model: str
    output_format: str | None
    as_json: bool
    think: bool
    no_think: bool
    think_max: bool
    hide_thinking: bool
    max_tokens: int | None
    temp: float | None
    top_p: float | None
    top_k: int
    min_p: float
    seed: int | None
    stop: list[str] | None
    tools: str | None
    no_stream: bool
    stats: bool
    backend: str | None
    numerics: str | None
    ram: str | None
    kv_dir: Path | None
    no_cache: bool


def run_once(request: RunRequest) -> None:
    """Answer and exit: 130 if interrupted, after what was said so far."""
    style = _format(request)
    options_error_first(request)
    messages = [{"role": "system", "content": request.system}] if request.system else []
    messages.append({"role": "user", "content": _prompt(request)})
    tools = _tools(request.tools)
    from v4cli.chat.turn import Chat, Options

    options = Options(
        thinking=request.think or request.think_max,
        effort="max" if request.think_max else None,
        temperature=request.temp,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        seed=request.seed,
        max_tokens=request.max_tokens,
        stop=tuple(request.stop or ()),
    )
    writer = {"text": TextWriter, "json": SilentWriter, "stream-json": StreamWriter}[style](request)
    with cancellable() as cancelled:
        session = sessions.session_maker(request.kv_dir, not request.no_cache)
        folder, ram = paths.model_folder(request.model), output.ram_budget(request.ram)
        chat = Chat.open(folder, request.backend, request.numerics, session, ram, paths.use_dir())
        for event in chat.reply(messages, options, tools, Prefill(), cancelled):
            writer.event(event)
    writer.end(result(request.model, chat))
    sessions.keep(chat.session)
    if request.stats:
        output.note(stats_line(chat.stats), dim=True)
    if chat.finish == "interrupted":
        sys.exit(Exit.INTERRUPTED)


def options_error_first(request: RunRequest) -> None:
    """Contradicting or impossible options fail before anything is loaded."""
    from v4cli.engine.sampler import Sampling

    chosen = [name for name in ("think", "no_think", "think_max") if getattr(request, name)]
    if len(chosen) > 1:
        flags = " and ".join("--" + name.replace("_", "-") for name in chosen)
        raise UsageError(f"{flags} exclude each other", f"drop --{chosen[-1].replace('_', '-')}")
    if request.prompt is not None and request.file is not None:
        raise UsageError("a PROMPT and --file exclude each other", "drop one of them")
    Sampling(
        1.0 if request.temp is None else request.temp,
        1.0 if request.top_p is None else request.top_p,
        request.top_k,
        request.min_p,
        request.seed,
    )


def _format(request: RunRequest) -> str:
    if request.as_json and request.output_format not in (None, "json"):
        raise UsageError("--json and --output-format exclude each other", "drop --json")
    style = "json" if request.as_json else request.output_format or "text"
    if style not in FORMATS:
        raise UsageError(f"--output-format must be one of {', '.join(FORMATS)}")
    return style


def _prompt(request: RunRequest) -> str:
    """stdin (when piped), then the prompt or the file, with a blank line between."""
    parts = []
    if not sys.stdin.isatty():
        parts.append(_decoded(sys.stdin.buffer.read(MAX_TEXT_BYTES + 1), "stdin"))
    if request.file is not None:
        parts.append(read_text(request.file))
    if request.prompt is not None:
        parts.append(request.prompt)
    text = "\n\n".join(part.strip("\n") for part in parts if part.strip())
    if not text:
        raise UsageError("no prompt", 'v4 run "your question", v4 run --file FILE, or pipe text in')
    return text


def read_text(path: Path) -> str:
    """A UTF-8 text file, or stdin for -. UsageError names the file."""
    if str(path) == "-":
        return _decoded(sys.stdin.buffer.read(MAX_TEXT_BYTES + 1), "stdin")
    try:
        with path.open("rb") as file:
            return _decoded(file.read(MAX_TEXT_BYTES + 1), str(path))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None


def _decoded(data: bytes, name: str) -> str:
    if len(data) > MAX_TEXT_BYTES:
        raise UsageError(f"{name}: more than {MAX_TEXT_BYTES >> 20} MiB of text")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not UTF-8 text (byte {error.start})") from None


def _tools(source: str | None) -> list[dict]:
    if source is None:
        return []
    if source == "builtin":
        from v4cli.nano.tools import TOOLS

        return TOOLS
    tools = jsonfile.parse(read_text(Path(source)), source, RequestError)
    if not isinstance(tools, list):
        raise RequestError(f"{source}: must be a JSON list of tools")
    return tools


@contextmanager
def cancellable():
    """Within: Ctrl-C only sets a flag, so that the answer so far is kept; a second one interrupts at once."""
    hit = []

    def handler(signum, frame):
        if hit:
            raise KeyboardInterrupt
        hit.append(signum)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(hit)
    finally:
        signal.signal(signal.SIGINT, before)


def result(model: str, chat) -> dict:
    """The object of --json. Keys are only ever added."""
    stats, message = chat.stats, chat.message
    return {
        "model": model,
        "text": message["content"],
        "reasoning_content": message.get("reasoning_content", ""),
        "tool_calls": [{k: v for k, v in c.items() if k != "index"} for c in message.get("tool_calls", [])],
        "finish_reason": chat.finish,
        "usage": {
            "prompt_tokens": stats.prompt_tokens,
            "cached_tokens": stats.cached_tokens,
            "completion_tokens": stats.completion_tokens,
        },
        "stats": stats.to_dict(),
    }


def stats_line(stats) -> str:
    """One line for people."""
    values = stats.to_dict()
    line = (
        f"prompt {stats.prompt_tokens} tokens ({stats.cached_tokens} cached) "
        f"{values['prefill_tokens_per_s']:.0f} tok/s, answer {stats.completion_tokens} tokens "
        f"{values['decode_tokens_per_s']:.1f} tok/s, load {stats.load_s:.2f} s, "
        f"KV {output.size(stats.kv_bytes)}, peak memory {output.size(values['peak_rss_bytes'])}"
    )
    if stats.planned_bytes:
        line += f" of {output.size(stats.planned_bytes)} planned"
    return line + _experts_lines(stats)


def _experts_lines(stats) -> str:
    """Of experts on demand: hits, bytes from the SSD, time waiting; nothing if all are in memory."""
    parts = []
    for name, read, n_tokens, seconds in (
        ("prefill", stats.prefill_experts, stats.prefill_tokens, stats.prefill_s),
        ("decode", stats.decode_experts, stats.completion_tokens - 1, stats.decode_s),
    ):
        if read and n_tokens > 0 and seconds:
            parts.append(
                f"\n{name}: {read['hit_rate']:.0%} of experts in memory, {read['wasted']} read in vain, "
                f"{output.size(read['bytes_read'] / n_tokens)} per token from the SSD, "
                f"busy {read['busy_s'] / seconds:.0%} of the time, waited for {read['wait_s'] / seconds:.0%}"
            )
    return "".join(parts)


class TextWriter:
    """Answer to stdout as it comes, thinking and tool calls to stderr."""

    def __init__(self, request: RunRequest):
        self.stream = not request.no_stream
        self.show_thinking = not request.hide_thinking
        self.thinking = False

    def event(self, event) -> None:
        if isinstance(event, Thinking) and self.show_thinking and self.stream:
            self.thinking = True
            output.note(event.text, end="", dim=True)
        elif self.thinking and not isinstance(event, Thinking):
            self.thinking = False
            output.note("")
        if isinstance(event, Text) and self.stream:
            output.answer(event.text)
        elif isinstance(event, ToolCallEnd):
            output.note(f"[{event.name} {event.arguments}]")

    def end(self, result: dict) -> None:
        if not self.stream:
            if self.show_thinking and result["reasoning_content"]:
                output.note(result["reasoning_content"], dim=True)
            output.answer(result["text"])
        if result["text"]:
            output.answer("\n")


class SilentWriter:
    """Nothing until the end, then one JSON object."""

    def __init__(self, request: RunRequest):
        pass

    def event(self, event) -> None:
        pass

    def end(self, result: dict) -> None:
        output.json_page(result)


class StreamWriter:
    """One JSON event per line."""

    def __init__(self, request: RunRequest):
        output.json_line({"type": "init", "model": request.model})

    def event(self, event) -> None:
        if isinstance(event, Thinking):
            output.json_line({"type": "thinking", "text": event.text})
        elif isinstance(event, Text):
            output.json_line({"type": "message", "text": event.text})
        elif isinstance(event, ToolCallEnd):
            arguments = json.loads(event.arguments)
            output.json_line({"type": "tool_use", "index": event.index, "name": event.name, "arguments": arguments})
        elif isinstance(event, End):
            output.json_line({"type": "end", "finish_reason": event.finish})

    def end(self, result: dict) -> None:
        output.json_line({"type": "result", **result})
