"""The tools that read, list, search, write and edit files of the workspace, and only of the workspace."""

import contextlib
import difflib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from v4cli.agent import guard, search
from v4cli.agent.tools import Context, Kind, Tool, ToolError, argument, parameters
from v4cli.files import write_atomically

MAX_READ = 48 << 10  # characters of a file that the model gets at once
MAX_BYTES = 8 << 20  # of a file that is read, edited or written
MAX_NAMES = 1000  # of a folder
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
    text, _ = _content(context.folder, arguments["path"])
    if len(text) <= MAX_READ:
        return text
    shown = text[:MAX_READ]
    shown = shown[: shown.rfind("\n") + 1] or shown
    first, last = shown.count("\n") + 1, text.count("\n") + 1
    rest = f"sed -n '{first},{first + 500}p' with run_shell shows more; search_text finds the line of a text"
    return f"{shown}[this is the beginning; the file has {last} lines, line {first} comes next: {rest}]"


def list_folder(arguments: dict, context: Context) -> str:
    """Names in a folder, one a line, folders with a slash."""
    with _opened(context.folder, arguments["path"], os.O_DIRECTORY) as handle, os.scandir(handle) as entries:
        names = sorted(entry.name + "/" * entry.is_dir(follow_symlinks=False) for entry in entries)
    more = [f"[{len(names) - MAX_NAMES} more]"] if len(names) > MAX_NAMES else []
    return "\n".join(_printable(name) for name in names[:MAX_NAMES] + more) or "[the folder is empty]"


def search_text(arguments: dict, context: Context) -> str:
    """Lines that match a regular expression, as path:line: text."""
    parts = _parts(context.folder, arguments["path"])
    with _opened(context.folder, arguments["path"], 0):
        return search.run(arguments["pattern"], os.path.join(".", *parts), context)


def write_file(arguments: dict, context: Context) -> str:
    """Write a whole file; folders on the way are made."""
    content = arguments["content"]
    _allow(context, arguments["path"])
    _write(context.folder, arguments["path"], content)
    lines = content.count("\n") + (not content.endswith("\n") and content != "")
    return f"wrote {arguments['path']} ({lines} line{'s' * (lines != 1)})"


def edit_file(arguments: dict, context: Context) -> str:
    """Replace the only occurrence of a text."""
    _, new = _edited(arguments, context)
    _write(context.folder, arguments["path"], new)
    return f"edited {arguments['path']}"


def preview_write(arguments: dict, context: Context) -> str:
    """What writing would change, as a unified diff."""
    _allow(context, arguments["path"])
    return _diff(arguments["path"], _old(context.folder, arguments["path"])[0], arguments["content"])


def preview_edit(arguments: dict, context: Context) -> str:
    """What editing would change, as a unified diff."""
    return _diff(arguments["path"], *_edited(arguments, context))


def _edited(arguments: dict, context: Context) -> tuple[str, str]:
    """The file's text before and after."""
    _allow(context, arguments["path"])
    text, _ = _content(context.folder, arguments["path"])
    old, new = arguments["old"], arguments["new"]
    if "\r\n" in text and "\r" not in old:
        old, new = old.replace("\n", "\r\n"), new.replace("\n", "\r\n")
    if not old:
        raise ToolError("the old text is empty; write_file writes whole files")
    if (n := text.count(old)) != 1:
        found = "is not in the file; read it again" if n == 0 else f"is there {n} times; give more of what is around it"
        raise ToolError(f"nothing was changed: the old text {found}")
    return text, text.replace(old, new)


def _allow(context: Context, path: str) -> None:
    """ToolError for a file that the user's programs obey unasked: only the user writes it."""
    who = "" if context.disposable else guard.refusal(os.path.realpath(context.folder), _parts(context.folder, path))
    if who:
        raise ToolError(f"{path} is read-only here: {who} would obey it unasked; tell the user what to put there")


def _diff(path: str, old: str | None, new: str) -> str:
    before, after = ("" if old is None else old).splitlines(keepends=True), new.splitlines(keepends=True)
    lines = difflib.unified_diff(before, after, "/dev/null" if old is None else f"a/{path}", f"b/{path}")
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _old(folder: Path, path: str) -> tuple[str | None, int]:
    """Text and permissions of the file that will be written over; if there is none, those of a new one."""
    try:
        return _content(folder, path)
    except Missing:
        return None, 0o644


def _content(folder: Path, path: str) -> tuple[str, int]:
    """Text and permissions of a regular file."""
    with _opened(folder, path, os.O_NONBLOCK) as handle:  # the opening of a FIFO would wait
        about = os.fstat(handle)
        if stat.S_ISDIR(about.st_mode):
            raise ToolError("it is a folder; list_folder lists it")
        if not stat.S_ISREG(about.st_mode):
            raise ToolError("it is not a regular file")
        with open(handle, "rb", closefd=False) as file:
            data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ToolError(f"the file is too large ({about.st_size >> 20} MiB); search_text can search it")
    try:
        if b"\0" in data:
            raise ValueError
        return data.decode("utf-8"), stat.S_IMODE(about.st_mode)
    except ValueError:
        raise ToolError(f"it is not a text file in UTF-8 ({len(data)} bytes)") from None


def _write(folder: Path, path: str, text: str) -> None:
    """Put a text in place of a file. Its permissions stay; its folder is the one that was checked, whatever is moved
    meanwhile."""
    data = text.encode("utf-8", "replace")
    if len(data) > MAX_BYTES:
        raise ToolError(f"the content is too large ({len(data) >> 20} MiB)")
    _, mode = _old(folder, path)
    parts = _parts(folder, path)
    with _walked(folder, parts[:-1], make=True) as parent, _told():
        write_atomically(Path(f"/proc/self/fd/{parent}") / parts[-1], data, mode & 0o777)


def _parts(folder: Path, path: str) -> tuple[str, ...]:
    """Where a path of the model leads: names below the workspace, without symbolic links and `..`."""
    root = os.path.realpath(folder)
    real = Path(os.path.realpath(os.path.join(root, argument(path))))
    if not real.is_relative_to(root):
        raise ToolError(f"it is outside the workspace {root}, which is all that can be used")
    return real.relative_to(root).parts


@contextlib.contextmanager
def _opened(folder: Path, path: str, flags: int) -> Iterator[int]:
    """A file or folder of the workspace, open for reading."""
    parts = _parts(folder, path)
    with _walked(folder, parts[:-1]) as parent, _told():
        handle = os.open(parts[-1] if parts else ".", os.O_RDONLY | os.O_NOFOLLOW | flags, dir_fd=parent)
    try:
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def _walked(folder: Path, parts: tuple[str, ...], make: bool = False) -> Iterator[int]:
    """A folder of the workspace, reached name by name: what became a symbolic link meanwhile is not followed."""
    with _told():
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in parts:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=handle)
                below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
                os.close(handle)
                handle = below
            yield handle
        finally:
            os.close(handle)


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


def _printable(name: str) -> str:
    """A file name on one line, whatever it consists of."""
    return "".join(c if c.isprintable() else "?" for c in name.encode("utf-8", "replace").decode())
