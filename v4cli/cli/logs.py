"""`v4 logs`: the conversations that are kept, of `v4 run` and `v4 chat` alike."""

import sys
import time
from collections.abc import Iterator
from itertools import islice

from v4cli import paths
from v4cli.agent.conversation import to_json, to_markdown
from v4cli.agent.transcript import Transcript, find, transcripts
from v4cli.chat.messages import content_text, without_ids
from v4cli.clean import on_one_line
from v4cli.cli import output
from v4cli.errors import UsageError

AROUND = 40  # characters before what was searched for, and behind it
MOST_FOUND = 3  # places that are shown of a conversation


def ls(most: int, as_json: bool) -> None:
    """The conversations used last."""
    found = list(islice(_all(), most))
    if as_json:
        output.json_page([_about(kept) for kept in found])
    elif not found:
        output.note(f"no conversation is kept yet under {paths.chats_dir()}")
    else:
        rows = [("ID", "USED", "MESSAGES", "MODEL", "TITLE")]
        output.table(rows + [_row(kept) for kept in found])


def show(wanted: str, as_json: bool) -> None:
    """One conversation, by default the one used last."""
    kept = find(paths.chats_dir(), wanted)
    if as_json:
        output.answer(to_json(kept))
        return
    output.note(f"{kept.id}, {kept.about.get('model', '')}: v4 chat -r {kept.id} goes on with it", dim=True)
    output.answer(to_markdown(kept))


def search(words: str, as_json: bool) -> None:
    """Conversations in which all words are said, in any case and order; where the first of them is."""
    wanted = words.casefold().split()
    if not wanted:
        raise UsageError("nothing to search for", "v4 logs search WORDS")
    hits = [(kept, places) for kept in _all() if (places := list(_places(kept, wanted)))]
    if as_json:
        output.json_page([_about(kept) | {"found": places} for kept, places in hits])
        return
    if not hits:
        output.note(f"no conversation has {on_one_line(words)!r}")
    for kept, places in hits:
        output.answer("  ".join(_row(kept)) + "\n")
        for place in places[:MOST_FOUND]:
            output.answer(f"    {place['role']}: {place['text']}\n")
        if len(places) > MOST_FOUND:
            output.answer(f"    … and {len(places) - MOST_FOUND} more\n")


def rm(wanted: list[str], yes: bool) -> None:
    """Delete conversations for good."""
    chosen = [find(paths.chats_dir(), one) for one in wanted]
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("not asked in a pipe", "add --yes")
        output.note(f"delete {len(chosen)} conversations? [y/N] ", end="")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return
    for kept in chosen:
        kept.path.unlink(missing_ok=True)
    output.note(f"{len(chosen)} deleted")


def _all() -> Iterator[Transcript]:
    return transcripts(paths.chats_dir(), lambda error: output.note(f"not listed: {error}"))


def _about(kept: Transcript) -> dict:
    return kept.about | {"messages": len(kept.messages), "used": int(kept.path.stat().st_mtime)}


def _row(kept: Transcript) -> tuple[str, ...]:
    about = _about(kept)
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(about["used"]))
    return about["id"], used, str(about["messages"]), str(about.get("model", "")), about["title"]


def _places(kept: Transcript, wanted: list[str]) -> Iterator[dict]:
    """Messages with all words, and the text around the first of these."""
    for number, message in enumerate(map(without_ids, kept.messages)):
        text = content_text(message.get("content"))
        folded = text.casefold()
        if all(word in folded for word in wanted):
            at = min(folded.find(wanted[0]), len(text))
            begin, end = max(0, at - AROUND), at + len(wanted[0]) + AROUND
            part = " ".join(text[begin:end].split())
            shown = ("…" if begin else "") + part + ("…" if end < len(text) else "")
            yield {"message": number, "role": message["role"], "text": shown}
