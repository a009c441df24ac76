"""The tools that read, list, search, write and edit files of the workspace, and only of the workspace."""

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from v4cli import system
from v4cli.agent import edits, guard, search
from v4cli.agent.places import Held, Named, walked
from v4cli.agent.tools import Context, Kind, Tool, ToolError, argument, parameters, printable
from v4cli.files import write_atomically

MAX_READ = 48 << 10  # characters of a file that the model gets at once
MAX_BYTES = 8 << 20  # of a file that is read, edited or written
MAX_NAMES = 1000  # of a folder
BOM = "\ufeff"  # some programs begin texts with it; the model neither sees nor removes it
STRING = {"type": "string"}


class Missing(ToolError):
    """There is no such file."""


def tools() -> list[Tool]:
    """read_file, list_folder, search_text, write_file, edit_file."""
    path = parameters(["path"], path=STRING)
    pattern = parameters(["pattern", "path"], pattern=STRING, path=STRING)
    content = parameters(["path", "content"], path=STRING, content="the whole new content of the file")
    change = parameters(["path", "old", "new"], path=STRING, old="text that is in the file exactly once", new="instead")
    return [
        Tool("read_file", "Read a text file", path, Kind.READ, read_file),
        Tool("list_folder", "List the files in a folder", path, Kind.READ, list_folder),
        Tool("search_text", "Search files for a text", pattern, Kind.READ, search_text),
        Tool("write_file", "Write a text file, new or over an old one", content, Kind.EDIT, write_file, preview_write),
        Tool("edit_file", "Replace a text in a file by another", change, Kind.EDIT, edit_file, preview_edit),
    ]


def read_file(arguments: dict, context: Context) -> str:
    """The text of a file; of a long one its beginning, and how to get at the rest."""
    text = _content(context.folder, arguments["path"])[0].removeprefix(BOM)
    if len(text) <= MAX_READ:
        return text
    shown = text[:MAX_READ]
    shown = shown[: shown.rfind("\n") + 1] or shown
    first, last = shown.count("\n") + 1, text.count("\n") + 1
    rest = f"sed -n '{first},{first + 500}p' with run_shell shows more; search_text finds the line of a text"
    return f"{shown}[this is the beginning; the file has {last} lines, line {first} comes next: {rest}]"


def list_folder(arguments: dict, context: Context) -> str:
    """Names in a folder, one a line, folders with a slash."""
    with _walked(context.folder, _parts(context.folder, arguments["path"])) as place:
        names = sorted(entry.name + "/" * entry.is_dir(follow_symlinks=False) for entry in place.names())
    more = [f"[{len(names) - MAX_NAMES} more]"] if len(names) > MAX_NAMES else []
    return "\n".join([*map(printable, names[:MAX_NAMES]), *more]) or "[the folder is empty]"


def search_text(arguments: dict, context: Context) -> str:
    """Lines that match a regular expression, as path:line: text."""
    parts = _parts(context.folder, arguments["path"])
    with _walked(context.folder, parts[:-1]) as parent:
        about = parent.about(parts[-1] if parts else ".")
        if not stat.S_ISDIR(about.st_mode):
            _regular(about)
    return search.run(arguments["pattern"], os.path.join(".", *parts), context)


def write_file(arguments: dict, context: Context) -> str:
    """Write a whole file; folders on the way are made."""
    content = arguments["content"]
    _allow(context, arguments["path"])
    old, before = _old(context.folder, arguments["path"])
    content = edits.ended_alike(content, old or "")
    if old and old.startswith(BOM):
        content = BOM + content.removeprefix(BOM)
    note = _write(context.folder, arguments["path"], content, before)
    lines = content.count("\n") + (not content.endswith("\n") and content != "")
    return f"wrote {arguments['path']} ({lines} line{'s' * (lines != 1)}){note}"


def edit_file(arguments: dict, context: Context) -> str:
    """Replace the only occurrence of a text."""
    _, new, before = _edited(arguments, context)
    note = _write(context.folder, arguments["path"], new, before)
    return f"edited {arguments['path']}{note}"


def preview_write(arguments: dict, context: Context) -> str:
    """What writing would change, as a unified diff."""
    _allow(context, arguments["path"])
    old, _ = _old(context.folder, arguments["path"])
    new = edits.ended_alike(arguments["content"], old or "").removeprefix(BOM)
    return edits.diff(arguments["path"], old and old.removeprefix(BOM), new)


def preview_edit(arguments: dict, context: Context) -> str:
    """What editing would change, as a unified diff."""
    old, new, _ = _edited(arguments, context)
    return edits.diff(arguments["path"], old.removeprefix(BOM), new.removeprefix(BOM))


def _edited(arguments: dict, context: Context) -> tuple[str, str, os.stat_result]:
    """The file's text before and after, and what is known of the file."""
    _allow(context, arguments["path"])
    text, about = _content(context.folder, arguments["path"])
    try:
        return text, edits.replaced(text, arguments["old"], arguments["new"]), about
    except ValueError as error:
        raise ToolError(str(error)) from None


def _allow(context: Context, path: str) -> None:
    """ToolError for a file that the user's programs obey unasked: only the user writes it."""
    who = "" if context.disposable else guard.refusal(os.path.realpath(context.folder), _parts(context.folder, path))
    if who:
        raise ToolError(f"{path} is read-only here: {who} would obey it unasked; tell the user what to put there")


def _old(folder: Path, path: str) -> tuple[str | None, os.stat_result | None]:
    """Text of the file that will be written over, and what is known of it; nothing if there is none."""
    try:
        return _content(folder, path)
    except Missing:
        return None, None


def _content(folder: Path, path: str) -> tuple[str, os.stat_result]:
    """Text of a regular file, and what is known of it."""
    with _opened(folder, path) as handle:
        about = _regular(os.fstat(handle))
        with open(handle, "rb", closefd=False) as file:
            data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ToolError(f"the file is too large ({about.st_size >> 20} MiB); search_text can search it")
    try:
        if b"\0" in data:
            raise ValueError
        return data.decode("utf-8"), about
    except ValueError:
        raise ToolError(f"it is not a text file in UTF-8 ({len(data)} bytes)") from None


def _regular(about: os.stat_result) -> os.stat_result:
    """What is known of a file, which must be a regular one."""
    if stat.S_ISDIR(about.st_mode):
        raise ToolError("it is a folder; list_folder lists it")
    if not stat.S_ISREG(about.st_mode):
        raise ToolError("it is not a regular file")
    return about


def _write(folder: Path, path: str, text: str, before: os.stat_result | None) -> str:
    """Put a text in place of a file, which is still the one that was read; its permissions stay. Its folder is the one
    that was checked, whatever is moved meanwhile. What else changed thereby."""
    data = text.encode()
    if len(data) > MAX_BYTES:
        raise ToolError(f"the content is too large ({len(data) >> 20} MiB)")
    parts = _parts(folder, path)
    with _walked(folder, parts[:-1], make=True) as parent:
        _check_unchanged(before, parts[-1], parent)
        place = parent.path / parts[-1]
        write_atomically(place, data, 0o666, keep=True)
        after = parent.about(parts[-1])
    if before is None:
        return ""
    links = "; its other hard links keep the old content" if before.st_nlink > 1 else ""
    is_kept = (before.st_uid, before.st_gid) == (after.st_uid, after.st_gid)
    return links + ("" if is_kept else "; its owner or group is another now")


def _check_unchanged(before: os.stat_result | None, name: str, parent: Held | Named) -> None:
    """A file that is written over must allow that and be as it was when it was read."""
    try:
        now = parent.about(name)
    except FileNotFoundError:
        now = None
    if _state(before) != _state(now):
        raise ToolError("nothing was changed: another program has changed the file meanwhile; read it again")
    if now and not (now.st_mode & 0o222 and parent.may_be_written(name)):
        raise ToolError("nothing was changed: the file is read-only")


def _state(about: os.stat_result | None) -> tuple[int, ...] | None:
    """What is another if a file was changed. Windows says who may execute it by its name, which a handle has not."""
    return about and (about.st_ino, about.st_mode & ~0o111, about.st_size, about.st_mtime_ns)


def _parts(folder: Path, path: str) -> tuple[str, ...]:
    """Where a path of the model leads: names below the workspace, without symbolic links and `..`."""
    root = os.path.realpath(folder)
    drive, names = os.path.splitdrive(argument(path))
    if drive and os.path.normcase(drive) != os.path.normcase(os.path.splitdrive(root)[0]):  # not even looked at
        raise ToolError(f"it is outside the workspace {root}, which is all that can be used")
    for name in re.split(r"[\\/]", names):
        if name not in ("", ".", "..") and (why := system.unusable(name)):
            raise ToolError(f"{name}: {why}")
    real = Path(os.path.realpath(os.path.join(root, path)))
    if not real.is_relative_to(root):
        raise ToolError(f"it is outside the workspace {root}, which is all that can be used")
    return real.relative_to(root).parts


@contextlib.contextmanager
def _opened(workspace: Path, path: str) -> Iterator[int]:
    """A file of the workspace, open for reading; a named pipe is not waited for."""
    parts = _parts(workspace, path)
    with _walked(workspace, parts[:-1]) as parent, _told():
        handle = parent.open(parts[-1] if parts else ".")
    try:
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def _walked(folder: Path, parts: tuple[str, ...], make: bool = False) -> Iterator[Held | Named]:
    """A folder of the workspace, as `walked` finds it."""
    with _told(), walked(folder, parts, make) as place:
        yield place


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Errors of the system in words for the model."""
    try:
        yield
    except FileNotFoundError:
        raise Missing("no such file") from None
    except NotADirectoryError:
        raise ToolError("it is not a folder") from None
    except OSError as error:
        raise ToolError((error.strerror or str(error)).lower()) from None
