"""`v4 run`: one prompt in, one answer out; with tools, after as many calls as the model needs."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event

from v4cli import files, jsonfile, paths, settings
from v4cli.agent.conversation import fit, settle
from v4cli.agent.loop import is_empty
from v4cli.agent.transcript import Transcript, find
from v4cli.chat import constraints, formats
from v4cli.chat.messages import check_tools, last_said
from v4cli.chat.parser import ToolCallEnd
from v4cli.cli import found, output, said, sessions
from v4cli.cli.progress import Prefill, waiting
from v4cli.cli.run_output import CheckedWriter, SilentWriter, StreamWriter, TextWriter, result, shortfall, stats_line
from v4cli.cli.said import ASK, Prompt, is_piped, read_text
from v4cli.errors import ContextError, Exit, Interrupted, RequestError, UsageError, V4Error
from v4cli.interrupts import interrupts
from v4cli.options import Format, Mode, RunOptions
from v4cli.plan import pace

WORTH_SAYING_S = 10.0  # of what files cost


def run_once(told: RunOptions) -> None:
    """Answer and exit: 130 if interrupted, after what was said so far; 6 if the model may not go on; 1 if what was to
    be JSON is not."""
    style = _format(told)
    refuse_contradictions(told)
    format_ = formats.wanted(told.shape.format, told.shape.schema)
    if format_:
        constraints.check_early(format_)
    told = replace(told, answer=replace(told.answer, format=format_, top_logprobs=told.logprobs))
    talk = _conversation(told)
    prompt = said.said(told.said, piped=told.tool_use.tools != "-" and is_piped())
    if not prompt.text.strip():
        raise UsageError("no prompt", ASK)
    model = told.model or talk.about.get("model") or settings.default_model()
    model = sessions.model_of(model, told.loading)
    loading = found.nearest(model, told.loading, lambda text: output.note(f"v4: {text}", dim=True))
    told = replace(told, model=model, loading=loading)
    talk.set(model=model)
    with _answering(told) as answer, _into(told.out):
        finish, stats, chat, fell_short = _answered(told, style, talk, prompt, answer)
        with waiting("storing what was computed"):
            sessions.keep(chat.session)
        if told.display.stats:
            output.note(stats_line(stats), dim=True)
        if finish == "interrupted":
            raise Interrupted(fell_short)
        if format_ and fell_short:
            raise _cut_json(fell_short, finish, style)
    if fell_short:
        output.note(f"v4: {fell_short}")
    if finish == "rounds":
        output.note("hint: --max-rounds N allows more")
        sys.exit(Exit.LIMIT)


def _answered(told: RunOptions, style: str, talk: Transcript, prompt: Prompt, answer: Callable) -> tuple:
    """Answer, print and keep it: why it ended, the statistics of all turns, the chat, and what is missing."""
    writer, stop = _writer(style, told), Event()
    new = {"role": "user", "content": prompt.text} | ({"shown": prompt.shown} if prompt.shown else {})
    try:
        with waiting(f"loading {told.model}"):
            chat = sessions.open_chat(told.model, told.loading)
        chat.note = output.note
        fit(talk, chat.tokenizer)
        settle(talk)
        system = talk.about.get("system")
        messages = [*([{"role": "system", "content": system}] if system else []), *talk.messages]
        n_before = len(messages)
        messages.append(new)
        _say_costs(chat, prompt)
        try:
            with interrupts(stop):
                finish, stats = answer(chat, messages, writer.event, stop.is_set)
        finally:
            if not stop.is_set():
                _keep(talk, messages[n_before:])
        fell_short = shortfall(messages, finish, _limit(chat)) or _misshapen(told.answer.format, messages)
    except ContextError as error:
        if prompt.attached.files and not error.hint:
            error.hint = f"give it less; the largest: {prompt.attached.largest()}"
        writer.error(error)
        raise
    except V4Error as error:
        writer.error(error)
        raise
    writer.end(result(told, messages, finish, stats, chat, talk.id if talk.is_kept else "", not fell_short))
    if stop.is_set():  # then there is little time: what was said is shown before it is kept
        _keep(talk, messages[n_before:])
    return finish, stats, chat, fell_short


def _conversation(told: RunOptions) -> Transcript:
    """The one to go on with, or a new one."""
    if told.said.go_on or told.said.resume is not None:
        talk = find(paths.chats_dir(), told.said.resume or "")
    else:
        talk = Transcript.new(paths.chats_dir(), folder=str(paths.here()))
    talk.records = not told.said.no_log
    if told.system:
        talk.set(system=told.system)
    return talk


def _keep(talk: Transcript, new: list[dict]) -> None:
    """Keep what was said, if anything was answered; an answer is not lost because that cannot be."""
    if not any(m["role"] == "assistant" and (m.get("reasoning_content") or not is_empty(m)) for m in new):
        return
    try:
        for message in new:
            talk.add(message)
    except V4Error as error:
        output.note(f"v4: not kept: {error}", dim=True)
    if talk.trouble:
        output.note(f"v4: not kept: {talk.trouble}", dim=True)


def _say_costs(chat, prompt: Prompt) -> None:
    """Files that were found, if it was not said which, and what it takes to read them, if that is long."""
    if not prompt.attached.files:
        return
    n_tokens = pace.estimated(chat.tokenizer.encode, prompt.text)
    seconds = chat.pace.seconds(0, n_tokens)
    if len(prompt.attached.files) > 1 or prompt.attached.left_out or (seconds or 0) > WORTH_SAYING_S:
        output.note(f"v4: {prompt.attached.about()}; {pace.about(n_tokens, seconds)}", dim=True)


def _cut_json(fell_short: str, finish: str, style: str) -> V4Error:
    """About an answer that is not the JSON it was to be."""
    is_text = style == "text"
    hint = "--json shows it, as text" if is_text else "v4 logs show has all of it"
    if finish in ("length", "loop"):
        hint = f"--max-tokens N allows more, maxLength in a schema bounds a string; {hint}"
    return V4Error(fell_short + ("; what is no JSON is not printed" if is_text else ""), hint)


def _misshapen(format_: Format | None, messages: list[dict]) -> str:
    """What is wrong with an answer that is to be JSON; empty if nothing is."""
    last = last_said(messages)
    if format_ is None or last.get("tool_calls"):
        return ""
    try:
        formats.checked(last["content"], format_)
    except V4Error as error:
        return str(error)
    return ""


@contextmanager
def _into(path: Path | None) -> Iterator[None]:
    """Within: what goes to stdout goes to a file, which is whole or as it was before. UsageError, before anything is
    done, if there can be no such file."""
    if path is None:
        yield
        return
    if not path.parent.is_dir():
        raise UsageError(f"--out {path}: there is no folder {path.parent}", f"mkdir -p {path.parent}")
    if os.path.lexists(path) and not path.is_file():
        raise UsageError(f"--out {path}: not a regular file", "give another name, or leave out --out for stdout")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"--out {path}: cannot be written (Permission denied)", f"ls -ld {path.parent}")
    with files.replacing(path, keep=True) as file:
        text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="", write_through=True)
        with contextlib.redirect_stdout(text):
            yield
        text.detach()


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
        for event in chat.reply(messages, told.answer, schemas, Prefill(chat.engine.config), cancelled):
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
        for event in agent.run(messages, told.answer, Prefill(chat.engine.config), cancelled):
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
        if told.answer.format:
            return CheckedWriter(not told.display.hide_thinking)
        return TextWriter(not (told.no_stream or told.out), not told.display.hide_thinking)
    return SilentWriter() if style == "json" else StreamWriter(told.model)


def refuse_contradictions(told: RunOptions) -> None:
    """Options that exclude each other fail before anything is loaded."""
    said.refuse_contradictions(told.said)
    use = told.tool_use
    if (use.approve or use.max_rounds or use.network) and _schemas_only(use.tools):
        raise UsageError(
            "--approve, --max-rounds and --network are for tools that run here", "add --tools nano, read, edit or all"
        )
    if [*told.said.files, use.tools].count("-") > 1:
        raise UsageError("- is stdin, which can be read only once", "put one of the texts into a file")
    if told.logprobs is not None and _format(told) != "json":
        raise UsageError("--logprobs is for --json", "add --json")


def _format(told: RunOptions) -> str:
    if told.as_json and told.output_format not in (None, "json"):
        raise UsageError("--json and --output-format exclude each other", "drop --json")
    return "json" if told.as_json else told.output_format or "text"
