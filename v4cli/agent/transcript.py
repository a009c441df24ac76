"""A conversation on disk: one JSONL file, only ever appended to, readable by its owner only.

The first line is {"type": "about", ...}; then {"type": "message", "message": {...}} for each message,
{"type": "cut", "keep": n} where the conversation went back to its first n messages, and {"type": "set", ...} where
something about it changed. What a crash left of a last line is dropped when the file is read.
"""

import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from v4cli.chat.messages import check_messages
from v4cli.errors import RequestError, UsageError

VERSION = 1
TITLE = 60  # characters


class Transcript:
    """The messages of a conversation and what is known about it: id, created, model, folder, system, title, tokenizer
    (digest of the one that the sampled ids are of), parent."""

    def __init__(self, path: Path, about: dict, messages: list[dict]):
        self.path, self.about, self.messages = path, about, messages

    @classmethod
    def new(cls, folder: Path, messages: list[dict] = (), /, **about) -> "Transcript":
        """A conversation that gets its file under `folder` with its first message."""
        id = time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2)
        about = {"version": VERSION, "id": id, "created": int(time.time()), "title": ""} | about
        made = cls(folder / f"{id}.jsonl", about, [])
        for message in messages:
            made.add(message)
        return made

    @classmethod
    def load(cls, path: Path) -> "Transcript":
        """Read a file. UsageError names it and the line if it is not a conversation."""
        about, messages = None, []
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
        for number, line in enumerate(lines[:-1], 1):  # after the last newline: nothing, or what a crash left
            try:
                record = json.loads(line)
                kind = record["type"]
                if kind == "about" and record["version"] == VERSION:
                    about = {key: value for key, value in record.items() if key != "type"}
                elif kind == "message":
                    check_messages([record["message"]])
                    messages.append(record["message"])
                elif kind == "cut":
                    messages = messages[: max(0, int(record["keep"]))]
                elif kind == "set":
                    about |= {key: value for key, value in record.items() if key != "type"}
                else:
                    raise ValueError(kind)
            except (ValueError, KeyError, TypeError, RecursionError, RequestError):
                raise UsageError(f"{path}: line {number} is not of a conversation") from None
        if not isinstance(about, dict) or not isinstance(about.get("id"), str):
            raise UsageError(f"{path}: not a conversation")
        return cls(path, about, messages)

    @property
    def id(self) -> str:
        return self.about["id"]

    def add(self, message: dict) -> None:
        """Append a message; the first of the user gives the title."""
        if not self.about["title"] and message["role"] == "user":
            self.about["title"] = " ".join(str(message.get("shown") or message["content"])[:200].split())[:TITLE]
        if not self.path.exists():
            self._write({"type": "about", **self.about})
            for known in self.messages:
                self._write({"type": "message", "message": known})
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
        if self.path.exists():
            self._write({"type": "set", **about})

    def fork(self) -> "Transcript":
        """A conversation of its own with the same messages."""
        about = {key: value for key, value in self.about.items() if key not in ("id", "created", "version")}
        return Transcript.new(self.path.parent, self.messages, **about | {"parent": self.id})

    def _write(self, record: dict) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":  # of a line that a crash cut off
                whole = os.pread(descriptor, size, 0)
                os.ftruncate(descriptor, whole.rfind(b"\n") + 1)
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def transcripts(folder: Path) -> Iterator[Transcript]:
    """All conversations under `folder` that can be read, the one used last first."""
    paths = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in paths:
        try:
            yield Transcript.load(path)
        except UsageError:
            continue


def find(folder: Path, wanted: str = "") -> Transcript:
    """The conversation whose ID begins with `wanted`; without it, the one used last. UsageError."""
    found = [path for path in folder.glob("*.jsonl") if path.name.startswith(wanted)]
    if not found:
        what = f"no conversation has an ID that begins with {wanted!r}" if wanted else "there is no conversation yet"
        raise UsageError(what, "v4 chat --list shows them" if wanted else "v4 chat begins one")
    if wanted and len(found) > 1:
        raise UsageError(f"{len(found)} conversations have an ID that begins with {wanted!r}", "v4 chat --list")
    return Transcript.load(max(found, key=lambda path: path.stat().st_mtime_ns))
