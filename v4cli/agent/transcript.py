"""A conversation on disk: one JSONL file, only ever appended to, readable by its owner only.

The first line is {"type": "about", ...}; then {"type": "message", "message": {...}} for each message,
{"type": "cut", "keep": n} where the conversation went back to its first n messages, and {"type": "set", ...} where
something about it changed. What a crash left of a last line is dropped when the file is read. If another process has
gone on with the conversation meanwhile, this one goes on in a file of its own. Where the file may not be written, the
conversation goes on without; what is missing is written as soon as that can be done.
"""

import contextlib
import errno
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from v4cli import files, system
from v4cli.chat.messages import check_messages
from v4cli.errors import RequestError, ResourceError, UsageError

VERSION = 1
TITLE = 60  # characters
MAX_BYTES = 1 << 28  # of a file
NEXT = "v4 logs lists the conversations that can be read"


class Transcript:
    """The messages of a conversation and what is known about it: id, created, model, folder, system, title, tokenizer
    (digest of the one that the sampled ids are of), parent."""

    def __init__(self, path: Path, about: dict, messages: list[dict], n_bytes: int = 0):
        self.path, self.about, self.messages = path, about, messages
        self._n_bytes = n_bytes  # of the file, as far as this process knows it
        self._unwritten: list[dict] = []  # records that belong behind those
        self.trouble = ""  # why they are not there, for the user
        self.records = True  # whether there is to be a file of it

    @classmethod
    def new(cls, folder: Path, messages: list[dict] = (), /, **about) -> "Transcript":
        """A conversation that gets its file under `folder` with its first message."""
        about = {"version": VERSION, "id": _new_id(), "created": int(time.time()), "title": ""} | about
        made = cls(folder / f"{about['id']}.jsonl", about, [])
        for message in messages:
            made.add(message)
        return made

    @classmethod
    def load(cls, path: Path) -> "Transcript":
        """Read a file. UsageError names it and the line if it is not a conversation."""
        about, messages = None, []
        data = files.contents(path, MAX_BYTES, UsageError, follow=False)
        lines = data.split(b"\n")
        for number, line in enumerate(lines[:-1], 1):  # after the last newline: nothing, or what a crash left
            try:
                record = json.loads(line)
                kind = record["type"]
                if kind == "about":
                    about = _about(record)
                elif kind == "message":
                    check_messages([record["message"]])
                    messages.append(record["message"])
                elif kind == "cut":
                    messages = messages[: max(0, int(record["keep"]))]
                elif kind == "set":
                    about = _about(about | record)
                else:
                    raise ValueError(kind)
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError, RequestError):
                raise UsageError(f"{path}: line {number} is not of a conversation", NEXT) from None
        if about is None:
            raise UsageError(f"{path}: not a conversation", NEXT)
        return cls(path, about, messages, len(data) - len(lines[-1]))

    @property
    def id(self) -> str:
        return self.about["id"]

    @property
    def is_kept(self) -> bool:
        """Whether there is a file of it."""
        return self._n_bytes > 0

    def add(self, message: dict) -> None:
        """Append a message; the first of the user gives the title."""
        if not self.about["title"] and message["role"] == "user":
            self.about["title"] = " ".join(str(message.get("shown") or message["content"])[:200].split())[:TITLE]
        self._write({"type": "message", "message": message})
        self.messages.append(message)

    def cut(self, keep: int) -> list[dict]:
        """Go back to the first `keep` messages; those after them are returned, and stay in the file."""
        gone = self.messages[keep:]
        if gone:
            self._write({"type": "cut", "keep": keep})
            del self.messages[keep:]
        return gone

    def set(self, **about) -> None:
        """Change what is known about the conversation."""
        self.about |= about
        if self._n_bytes:
            self._write({"type": "set", **about})

    def fork(self) -> "Transcript":
        """A conversation of its own with the same messages."""
        about = {key: value for key, value in self.about.items() if key not in ("id", "created", "version")}
        made = Transcript.new(self.path.parent, **about | {"parent": self.id})
        made.records = self.records
        for message in self.messages:
            made.add(message)
        return made

    def _write(self, record: dict) -> None:
        """Append a line, after all that is known if it is the first. ResourceError without room, which can be made;
        where the place cannot be written at all, `trouble` says so."""
        if not self.records:
            return
        self._unwritten.append(record)
        try:
            if not self._written():
                self.about |= {"id": _new_id(), "parent": self.id}
                self.path, self._n_bytes = self.path.with_name(f"{self.id}.jsonl"), 0
                self._written()
        except OSError as error:
            if not self._n_bytes:
                with contextlib.suppress(OSError):
                    self.path.unlink()
            why = f"{self.path}: cannot be written ({error.strerror})"
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                self._unwritten.pop()
                raise ResourceError(why, "make room or V4_HOME=FOLDER, then say it again") from None
            self.trouble = why
        else:
            self._unwritten, self.trouble = [], ""

    def _written(self) -> bool:
        """Append what is missing unless another process has appended something."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = system.open_file(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, follow=False)
        with open(descriptor, "ab") as file:
            system.set_mode(descriptor, 0o600)  # it may have come from a copy
            system.lock(descriptor)
            news = bytearray(max(0, os.fstat(descriptor).st_size - self._n_bytes))  # none, or what a crash cut off
            system.read_at(descriptor, news, self._n_bytes)
            if file.tell() >= self._n_bytes and b"\n" not in news:
                file.truncate(self._n_bytes)
                lines = self._unwritten if self._n_bytes else [*self._known(), self._unwritten[-1]]
                file.write(b"".join(map(_line, lines)))
                file.flush()
                self._n_bytes = file.tell()
                return True
        return False

    def _known(self) -> list[dict]:
        said = [{"type": "message", "message": message} for message in self.messages]
        return [{"type": "about", **self.about}, *said]


def _about(record: dict) -> dict:
    """What a record says about the conversation; ValueError if that cannot be."""
    texts = (record["id"], record["title"], record.get("system") or "", record.get("model") or "")
    if record["version"] != VERSION or not all(isinstance(text, str) for text in texts):
        raise ValueError
    return {key: value for key, value in record.items() if key != "type"}


def _new_id() -> str:
    return time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(3)


def _line(record: dict) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def transcripts(folder: Path, on_damaged: Callable[[UsageError], None] = lambda error: None) -> Iterator[Transcript]:
    """All conversations under `folder`, the one used last first; `on_damaged` hears of those that cannot be read."""
    for path in sorted(folder.glob("*.jsonl"), key=_used, reverse=True):
        try:
            yield Transcript.load(path)
        except UsageError as error:
            on_damaged(error)


def find(folder: Path, wanted: str = "") -> Transcript:
    """The conversation whose ID begins with `wanted`; without it, the one used last. UsageError."""
    found = [path for path in folder.glob("*.jsonl") if path.name.startswith(wanted)]
    if not found:
        what = f"no conversation has an ID that begins with {wanted!r}" if wanted else "there is no conversation yet"
        raise UsageError(what, "v4 logs lists them" if wanted else 'v4 run "hello", or v4 chat, begins one')
    if wanted and len(found) > 1:
        raise UsageError(f"{len(found)} conversations have an ID that begins with {wanted!r}", "v4 logs lists them")
    return Transcript.load(max(found, key=_used))


def _used(path: Path) -> int:
    """When it was written last, in ns; 0 if it has gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
