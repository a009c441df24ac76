"""`v4 run`: one prompt in, one answer out; with tools, after as many calls as the model needs."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event

from v4cli import jsonfile, paths
from v4cli.chat.messages import check_tools
from v4cli.chat.parser import ToolCallEnd
from v4cli.cli import output, sessions
from v4cli.cli.progress import Prefill
from v4cli.cli.run_input import prompt_of, read_text
from v4cli.cli.run_output import SilentWriter, StreamWriter, TextWriter, result, shortfall, stats_line
from v4cli.errors import Exit, Interrupted, RequestError, UsageError, V4Error
from v4cli.interrupts import interrupts
from v4cli.options import Mode, RunOptions


def run_once(told: RunOptions) -> None:
    """Answer and exit: 130 if interrupted, after what was said so far; 6 if the model may not go on."""
    style = _format(told)
    refuse_contradictions(told)
    messages = [{"role": "system", "content": told.system}] if told.system else []
    messages.append({"role": "user", "content": prompt_of(told.prompt, told.files, told.tool_use.tools != "-")})
    with _answering(told) as answer:
        writer, stop = _writer(style, told), Event()
        try:
            chat = sessions.open_chat(told.model, told.loading)
            chat.note = output.note
            with interrupts(stop):
                finish, stats = answer(chat, messages, writer.event, stop.is_set)
        except V4Error as error:
            writer.error(error)
            raise
    writer.end(result(told.model, messages, finish, stats))
    sessions.keep(chat.session)
    if told.display.stats:
        output.note(stats_line(stats), dim=True)
    fell_short = shortfall(messages, finish, _limit(chat))
    if finish == "interrupted":
        raise Interrupted(fell_short)
    if fell_short:
        output.note(f"v4: {fell_short}")
    if finish == "rounds":
        output.note("hint: --max-rounds N allows more")
        sys.exit(Exit.LIMIT)


def _limit(chat) -> str:
    """What ended an answer that was cut off."""
    n_sampled = len(chat.ids)
    if len(chat.prompt) + n_sampled >= chat.engine.config.max_position_embeddings:
        return "the end of the model's context"
    return f"the limit of {n_sampled} tokens (--max-tokens)"


@contextmanager
def _answering(told: RunOptions) -> Iterator[Callable]:
    """Within: what answers with a chat. answer(chat, messages, show, cancelled) extends the messages, and gives why it
    ended and the statistics of all turns. UsageError."""
    schemas = _schemas(told.tool_use.tools)
    if schemas is None:
        with _with_tools(told) as answer:
            yield answer
        return

    def answer(chat, messages, show, cancelled):
        for event in chat.reply(messages, told.answer, schemas, Prefill(), cancelled):
            show(event)
        messages.append(chat.message)
        return chat.finish, chat.stats

    yield answer


@contextmanager
def _with_tools(told: RunOptions) -> Iterator[Callable]:
    """The same by the agent loop in this folder."""
    from v4cli.agent.approval import Approvals
    from v4cli.agent.loop import Agent, Done, Said
    from v4cli.agent.tools import Context
    from v4cli.agent.toolset import toolset
    from v4cli.engine.stats import total

    use, folder = told.tool_use, paths.here()

    def answer(chat, messages, show, cancelled):
        agent = Agent(chat, tools, Context(folder), decide, max_rounds=use.max_rounds)
        finish, turns = "", []
        for event in agent.run(messages, told.answer, Prefill(), cancelled):
            if isinstance(event, Said):
                messages.append(event.message)
                if event.message["role"] == "assistant":
                    turns.append(replace(chat.stats))
            elif isinstance(event, Done):
                finish = event.reason
            elif not isinstance(event, ToolCallEnd):  # CallStart says it, when it runs
                show(event)
        return finish, total(turns)

    with toolset(use.tools, output.note, use.network) as tools:
        approvals = Approvals(use.approve or Mode.ASK, folder)
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


def _writer(style: str, told: RunOptions):
    if style == "text":
        return TextWriter(not told.no_stream, not told.display.hide_thinking)
    return SilentWriter() if style == "json" else StreamWriter(told.model)


def refuse_contradictions(told: RunOptions) -> None:
    """Options that exclude each other fail before anything is loaded."""
    use = told.tool_use
    if (use.approve or use.max_rounds or use.network) and _schemas_only(use.tools):
        raise UsageError(
            "--approve, --max-rounds and --network are for tools that run here", "add --tools nano, read, edit or all"
        )
    if told.prompt is not None and told.files:
        raise UsageError("a PROMPT and --file exclude each other", "drop one of them")
    if [*map(str, told.files), use.tools].count("-") > 1:
        raise UsageError("- is stdin, which can be read only once", "put one of the texts into a file")


def _format(told: RunOptions) -> str:
    if told.as_json and told.output_format not in (None, "json"):
        raise UsageError("--json and --output-format exclude each other", "drop --json")
    return "json" if told.as_json else told.output_format or "text"
