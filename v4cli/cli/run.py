"""`v4 run`: one prompt in, one answer out; with tools, after as many calls as the model needs."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

from v4cli import jsonfile, paths
from v4cli.chat.messages import check_tools
from v4cli.chat.parser import ToolCallEnd
from v4cli.cli import output, sessions
from v4cli.cli.progress import Prefill
from v4cli.cli.run_input import one_way_of_thinking, prompt_of, read_text
from v4cli.cli.run_output import SilentWriter, StreamWriter, TextWriter, result, shortfall, stats_line
from v4cli.errors import Exit, Interrupted, RequestError, UsageError, V4Error
from v4cli.files import argument
from v4cli.interrupts import interrupts
from v4cli.store import library

FORMATS = ("text", "json", "stream-json")


@dataclass(frozen=True)
class RunRequest:
    """The options of `v4 run`, as typed."""

    prompt: str | None
    files: list[Path]
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
    approve: str | None
    network: bool
    constrain: bool
    max_rounds: int | None
    no_stream: bool
    stats: bool
    backend: str | None
    numerics: str | None
    ram: str | None
    kv_dir: Path | None
    no_cache: bool


def run_once(request: RunRequest) -> None:
    """Answer and exit: 130 if interrupted, after what was said so far; 6 if the model may not go on."""
    style = _format(request)
    refuse_contradictions(request)
    options = _options(request)
    system = argument(request.system, "--system")
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt_of(request.prompt, request.files, request.tools != "-")})
    with _answering(request, options) as answer:
        writer, stop = _writer(style, request), Event()
        try:
            chat = _opened(request)
            chat.note = output.note
            with interrupts(stop):
                finish, stats = answer(chat, messages, writer.event, stop.is_set)
        except V4Error as error:
            writer.error(error)
            raise
    writer.end(result(request.model, messages, finish, stats))
    sessions.keep(chat.session)
    if request.stats:
        output.note(stats_line(stats), dim=True)
    told = shortfall(messages, finish, _limit(chat))
    if finish == "interrupted":
        raise Interrupted(told)
    if told:
        output.note(f"v4: {told}")
    if finish == "rounds":
        output.note("hint: --max-rounds N allows more")
        sys.exit(Exit.LIMIT)


def _limit(chat) -> str:
    """What ended an answer that was cut off."""
    n_sampled = len(chat.ids)
    if len(chat.prompt) + n_sampled >= chat.engine.config.max_position_embeddings:
        return "the end of the model's context"
    return f"the limit of {n_sampled} tokens (--max-tokens)"


def _options(request: RunRequest):
    """What is asked of the sampler. UsageError for what cannot be."""
    from v4cli.chat.turn import Options

    return Options(
        thinking=request.think or request.think_max,
        effort="max" if request.think_max else None,
        temperature=request.temp,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        seed=request.seed,
        max_tokens=request.max_tokens,
        stop=tuple(argument(stop, "--stop") for stop in request.stop or ()),
        constrain=request.constrain,
    )


def _opened(request: RunRequest):
    """The model, with a session as the options want it."""
    session = sessions.session_maker(request.kv_dir, not request.no_cache)
    folder, ram = library.model_folder(request.model), output.ram_budget(request.ram)
    from v4cli.chat.turn import Chat

    return Chat.open(folder, request.backend, request.numerics, session, ram, paths.use_dir())


@contextmanager
def _answering(request: RunRequest, options) -> Iterator[Callable]:
    """Within: what answers with a chat. answer(chat, messages, show, cancelled) extends the messages, and gives why it
    ended and the statistics of all turns. UsageError."""
    schemas = _schemas(request.tools)
    if schemas is None:
        with _with_tools(request, options) as answer:
            yield answer
        return

    def answer(chat, messages, show, cancelled):
        for event in chat.reply(messages, options, schemas, Prefill(), cancelled):
            show(event)
        messages.append(chat.message)
        return chat.finish, chat.stats

    yield answer


@contextmanager
def _with_tools(request: RunRequest, options) -> Iterator[Callable]:
    """The same by the agent loop in this folder."""
    from v4cli.agent.approval import Approvals, Mode
    from v4cli.agent.loop import MAX_ROUNDS, Agent, Done, Said
    from v4cli.agent.tools import Context
    from v4cli.agent.toolset import toolset
    from v4cli.engine.stats import total

    mode, folder = request.approve or Mode.ASK, paths.here()
    if mode not in tuple(Mode):
        raise UsageError(f"--approve must be one of {', '.join(Mode)}")

    def answer(chat, messages, show, cancelled):
        agent = Agent(chat, tools, Context(folder), decide, max_rounds=request.max_rounds or MAX_ROUNDS)
        finish, turns = "", []
        for event in agent.run(messages, options, Prefill(), cancelled):
            if isinstance(event, Said):
                messages.append(event.message)
                if event.message["role"] == "assistant":
                    turns.append(replace(chat.stats))
            elif isinstance(event, Done):
                finish = event.reason
            elif not isinstance(event, ToolCallEnd):  # CallStart says it, when it runs
                show(event)
        return finish, total(turns)

    with toolset(request.tools, output.note, request.network) as tools:
        approvals = Approvals(mode, folder)
        for note in approvals.notes:
            output.note(note)
        decide = approvals.decide
        yield answer


def _schemas(source: str | None) -> list[dict] | None:
    """Of tools that the caller runs: those of a file, or none; None if `source` names built-in tools."""
    if source is None:
        return []
    if not _schemas_only(source):
        return None
    tools = jsonfile.parse(read_text(Path(source)), source, RequestError)
    check_tools(tools, source)
    return tools


def _schemas_only(source: str | None) -> bool:
    """Whether the model may only say which tools it would call: there are none, or they are in a file."""
    return source is None or source == "-" or "/" in source or source.endswith(".json")


def _writer(style: str, request: RunRequest):
    if style == "text":
        return TextWriter(not request.no_stream, not request.hide_thinking)
    return SilentWriter() if style == "json" else StreamWriter(request.model)


def refuse_contradictions(request: RunRequest) -> None:
    """Options that exclude each other fail before anything is loaded."""
    one_way_of_thinking(request)
    if (request.approve or request.max_rounds or request.network) and _schemas_only(request.tools):
        raise UsageError(
            "--approve, --max-rounds and --network are for tools that run here", "add --tools nano, read, edit or all"
        )
    if request.prompt is not None and request.files:
        raise UsageError("a PROMPT and --file exclude each other", "drop one of them")
    if [*map(str, request.files), request.tools].count("-") > 1:
        raise UsageError("- is stdin, which can be read only once", "put one of the texts into a file")


def _format(request: RunRequest) -> str:
    if request.as_json and request.output_format not in (None, "json"):
        raise UsageError("--json and --output-format exclude each other", "drop --json")
    style = "json" if request.as_json else request.output_format or "text"
    if style not in FORMATS:
        raise UsageError(f"--output-format must be one of {', '.join(FORMATS)}")
    return style
