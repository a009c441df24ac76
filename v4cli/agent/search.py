"""Searching files for a regular expression, by a program that can be stopped and sees the workspace only."""

import json
import os
from pathlib import Path

from v4cli.agent import grep, sandbox
from v4cli.agent.process import Finished, Limits
from v4cli.agent.tools import Context, ToolError, argument, printable

LIMITS = Limits(seconds=30, output_bytes=1 << 20)


def run(pattern: str, path: str, context: Context) -> str:
    """Matches below `path`, which is relative to the workspace, as path:line: text; then what was left out."""
    program = [sandbox.python(), "-I", "-c", Path(grep.__file__).read_text("utf-8"), argument(pattern), path]
    done = sandbox.run(program, context.folder, LIMITS, cancelled=context.cancelled, access=sandbox.Access.READ)
    records, said = _records(done.text)
    matches = [f"{_name(file)}:{number}: {text}" for _, file, number, text in records.get("match", ())]
    ends = records.get("end")
    if not matches and not ends:
        raise ToolError(f"the search failed: {_ending(done, said)}")
    notes = _left_out(*ends[0][1:]) if ends else [_unfinished(done, said, records.get("at", ()))]
    return "\n".join([*(matches or ["no matches"]), *notes])


def _records(text: str) -> tuple[dict[str, list], str]:
    """What the program told, by its kind; and the last line that is not of it, such as an error."""
    records: dict[str, list] = {}
    said = ""
    for line in text.splitlines():
        try:
            record = json.loads(line)
            records.setdefault(record[0], []).append(record)
        except (ValueError, TypeError, LookupError):  # half a line, where it was stopped, too
            said = line
    return records, said


def _left_out(more: bool, left_out: dict[str, list]) -> list[str]:
    """What is told of a search that came to its end."""
    notes = [f"[there are more than {grep.MAX_MATCHES} matches; search for less, or in fewer files]"] if more else []
    about = []
    for why, (n, *files) in left_out.items():
        others = f" and {n - len(files)} more" if n > len(files) else ""
        about.append(f"{', '.join(map(_name, files))}{others} ({why})")
    return notes + ([f"[not searched, or not as text: {'; '.join(about)}]"] if about else [])


def _unfinished(done: Finished, said: str, progress) -> str:
    """What is told of a search that was ended."""
    return f"[the search is not complete: {_ending(done, said)}; it had come to {_name(progress[-1][1])}]"


def _ending(done: Finished, said: str) -> str:
    return done.stopped or said.strip() or f"it ended with status {done.status}"


def _name(path: str) -> str:
    return printable(os.path.normpath(path))
