"""What the slash commands do: action(dialogue, argument). They raise V4Error for the user to see.

The prompt waits for this module: what only some actions need is imported by them.
"""

import os
import time
from dataclasses import replace

from v4cli import paths
from v4cli.entries import Option, entries
from v4cli.errors import UsageError
from v4cli.options import Loading, Mode, Options
from v4cli.repl import items

LISTED = 20  # conversations
THINK = next(entry for entry in entries(Options) if entry.name == "think")
LIVE = {entry.name: entry for concern in (Options, Loading) for entry in entries(concern) if entry.live}


def new(dialogue, argument: str) -> None:
    about = dialogue.conversation.transcript.about
    transcript = dialogue.blank(about.get("system", ""))
    dialogue.conversation.start(transcript)
    transcript.set(model=dialogue.model)
    dialogue.note("a new conversation")


def logs(dialogue, argument: str) -> None:
    dialogue.note(listing() or "no conversation is kept yet")


def resume(dialogue, argument: str) -> None:
    from v4cli.agent.transcript import find, transcripts

    here = dialogue.conversation.transcript.id
    if not argument:
        others = (transcript.id for transcript in transcripts(paths.chats_dir()) if transcript.id != here)
        argument = next(others, "")
        if not argument:
            raise UsageError("there is no other conversation", "/logs lists those that are kept")
    dialogue.conversation.start(find(paths.chats_dir(), argument))
    dialogue.note(f"conversation {dialogue.conversation.transcript.id}")
    dialogue.show_earlier()


def fork(dialogue, argument: str) -> None:
    before = dialogue.conversation.transcript.id
    dialogue.note(f"conversation {dialogue.conversation.fork()}; {before} stays as it is")


def undo(dialogue, argument: str) -> None:
    dialogue.note(f"taken back: {_short(dialogue.conversation.undo())}")


def retry(dialogue, argument: str) -> None:
    dialogue.retry()


def edit(dialogue, argument: str) -> None:
    text = dialogue.conversation.undo()
    if argument:
        dialogue.message(argument, argument)
    else:
        dialogue.emit(items.Draft(text))


def compact(dialogue, argument: str) -> None:
    dialogue.compact()
    dialogue.note("the conversation goes on from this summary")


def system(dialogue, argument: str) -> None:
    transcript = dialogue.conversation.transcript
    if argument:
        transcript.set(system="" if argument == "off" else argument)
    dialogue.note(f"system prompt: {transcript.about.get('system') or 'none'}")


def think(dialogue, argument: str) -> None:
    talk = dialogue.conversation
    if argument in ("show", "fold"):
        dialogue.emit(items.Show(argument == "show"))
    elif argument in THINK.choices:
        talk.options = replace(talk.options, **THINK.values(argument))
    elif argument:
        raise UsageError(f"/think takes off, on, max, show or fold, not {argument!r}")
    state = "off" if not talk.options.thinking else talk.options.effort or "on"
    dialogue.note(f"reasoning: {state}")


def temp(dialogue, argument: str) -> None:
    if argument:
        _change(dialogue, LIVE["temp"], argument)
    dialogue.note(f"temperature: {_now(dialogue, LIVE['temp'])}")


def format_(dialogue, argument: str) -> None:
    from v4cli.chat import constraints, formats

    talk = dialogue.conversation
    if argument:
        is_json, is_schema = argument == "json", argument not in ("json", "text", "off")
        wanted = formats.wanted("json" if is_json else None, argument if is_schema else None)
        if wanted:
            constraints.check_early(wanted)
        talk.options = replace(talk.options, format=wanted)
    dialogue.note(f"answers are {formats.shown(talk.options.format)}")


def set_option(dialogue, argument: str) -> None:
    name, _, text = argument.partition(" ")
    if name and name not in LIVE:
        raise UsageError(f"/set knows no {name!r}", f"/set takes {', '.join(LIVE)}")
    if text:
        _change(dialogue, LIVE[name], text.strip())
    shown = [LIVE[name]] if name else LIVE.values()
    dialogue.note("\n".join(f"{entry.name}: {_now(dialogue, entry)}" for entry in shown))


def _now(dialogue, entry: Option) -> str:
    """What a live option is, in words; of the model's, the value."""
    if entry.name == "drafts":
        return str(getattr(dialogue.chat.engine, entry.field, "as the server does"))
    talk = dialogue.conversation
    told = getattr(talk.options, entry.field)
    if isinstance(told, tuple):
        return " ".join(told) or "none"
    if isinstance(told, bool):
        return "on" if told else "off"
    if told is not None:
        return str(told)
    force = getattr(dialogue.chat.in_force(talk.options, talk.agent.toolbox.schemas), entry.field)
    return "another one for each answer" if force is None else f"{force} (of the model)"


def model(dialogue, argument: str) -> None:
    if argument:
        dialogue.switch(argument)
    dialogue.emit(items.Ready(dialogue.model))
    config = dialogue.chat.engine.config
    dialogue.note(f"model: {dialogue.model}, context {config.max_position_embeddings:,} tokens")


def tools(dialogue, argument: str) -> None:
    lines = [f"{t.name} ({t.kind}): {t.description}" for t in dialogue.conversation.agent.toolbox.tools.values()]
    dialogue.note("\n".join(lines) or "no tools (v4 chat --tools all)")


def approve(dialogue, argument: str) -> None:
    if argument and argument not in tuple(Mode):
        raise UsageError(f"/approve takes {', '.join(Mode)}, not {argument!r}")
    if argument:
        dialogue.approvals.mode = argument
    dialogue.note(f"approval: {dialogue.approvals.mode}")


def stats(dialogue, argument: str) -> None:
    dialogue.note(dialogue.setup.stats_line(dialogue.chat.stats))


def experts(dialogue, argument: str) -> None:
    if argument not in ("", "on", "off"):
        raise UsageError(f"/experts takes on or off, not {argument!r}")
    if dialogue.chat.engine.counts() is None:
        raise UsageError("all experts of this model are in memory", "v4 chat --ram 12G bounds it")
    dialogue.emit(items.Experts(argument != "off"))


def context(dialogue, argument: str) -> None:
    from v4cli.chat.context import PARTS, parts

    chat, said = dialogue.chat, bool(dialogue.conversation.transcript.messages)
    counts = parts(chat.tokenizer, dialogue.context())
    if not said:
        counts = {name: n for name, n in counts.items() if name == PARTS[0]}
    limit, used = chat.engine.config.max_position_embeddings, sum(counts.values())
    rows = [*counts.items(), ("in the context", used), ("free", limit - used)]
    width = len(f"{limit:,}")
    lines = [f"{n:>{width},}  {name}" for name, n in rows]
    if not said:
        lines.append("(nothing has been said yet: this comes with the first message)")
    dialogue.note("\n".join(lines))


def tokens(dialogue, argument: str) -> None:
    if not argument:
        raise UsageError("/tokens needs a text", "/tokens TEXT; /context tells about the conversation")
    dialogue.note(f"{len(dialogue.chat.tokenizer.encode(argument)):,} tokens")


def export(dialogue, argument: str) -> None:
    from v4cli.agent.conversation import to_json, to_markdown

    kind, _, name = argument.partition(" ")
    write = {"md": to_markdown, "json": to_json}.get(kind)
    if write is None:
        raise UsageError("/export needs a format", "/export md, or /export json FILE")
    transcript = dialogue.conversation.transcript
    path = dialogue.setup.folder / paths.expanded(name.strip() or f"{transcript.id}.{kind}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        with open(os.open(path, flags, 0o600), "w", encoding="utf-8", errors="replace") as file:
            file.write(write(transcript))
    except FileExistsError:
        raise UsageError(f"{path} exists", f"/export {kind} ANOTHER-FILE") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None
    dialogue.note(f"written: {path}")


def copy(dialogue, argument: str) -> None:
    said = (m for m in reversed(dialogue.conversation.transcript.messages) if m["role"] == "assistant")
    text = next((m["content"] for m in said if m.get("content")), "")
    if not text:
        raise UsageError("there is no answer yet")
    dialogue.emit(items.Copy(_code(text, argument) if argument else text))


def _code(text: str, argument: str) -> str:
    """The block of code that `code` (the last one) or `code N` means. UsageError."""
    from markdown_it import MarkdownIt

    word, _, number = argument.partition(" ")
    if word != "code" or not (number.isdecimal() or not number):
        raise UsageError(f"/copy takes code, or code and a number, not {argument!r}", "/copy code")
    blocks = [token.content for token in MarkdownIt().parse(text) if token.type in ("fence", "code_block")]
    at = int(number or len(blocks))
    if not 1 <= at <= len(blocks):
        raise UsageError(f"the last answer has {len(blocks) or 'no'} block{'s' * (len(blocks) != 1)} of code", "/copy")
    return blocks[at - 1]


def listing() -> str:
    """The conversations used last, a line each."""
    from v4cli.agent.transcript import transcripts

    rows = []
    for transcript, _ in zip(transcripts(paths.chats_dir()), range(LISTED)):
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(transcript.path.stat().st_mtime))
        rows.append(f"{transcript.id}  {when}  {len(transcript.messages):>4} messages  {transcript.about['title']}")
    return "\n".join(rows)


def _change(dialogue, entry: Option, text: str) -> None:
    """Change an option of the next answers if the text is a value of it; `default` goes back to the model's."""
    talk = dialogue.conversation
    try:
        value = entry.default if text == "default" else entry.parsed(text)
    except ValueError:
        raise UsageError(f"{entry.name} is {entry.expected}, not {text!r}") from None
    if entry.name == "drafts":
        if fault := entry.fault(value):
            raise UsageError(f"{entry.name} {fault}")
        dialogue.chat.engine.guess_by(value)
        return
    talk.options = replace(talk.options, **entry.values(value))


def _short(text: str, length: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
