"""Files, folders and patterns that the user gives the model to read: found, read within bounds, and labelled."""

import glob
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from v4cli import paths, system
from v4cli.agent import tree
from v4cli.agent.conversation import fenced
from v4cli.clean import on_one_line, visible
from v4cli.errors import UsageError, hinted
from v4cli.files import decoded
from v4cli.streams import read_path

MOST_BYTES = 64 << 20  # of all files together: more than any context
MOST_FILES = 10_000
MOST_SEEN = 1_000_000  # files and folders that are looked at for them
NAMED = 3  # files that a note names
GIT = ["git", "-c", "core.fsmonitor=false", "-c", "core.untrackedCache=false"]  # settings that make it run programs
GET_GIT = {"darwin": "xcode-select --install", "win32": "winget install Git.Git"}.get(sys.platform, "apt install git")
PATTERN = "*?["  # characters that make a name a pattern


@dataclass(frozen=True)
class File:
    """A text; `path` tells it from others."""

    name: str
    n_bytes: int
    text: str
    path: Path | None = None  # None: stdin

    def labelled(self) -> str:
        """As the model is shown it: name and size, then the text as a block that it cannot end."""
        name = visible(on_one_line(self.name))
        return f"{name} ({self.n_bytes:,} byte{'s' * (self.n_bytes != 1)}):\n{fenced(self.text.rstrip())}"


@dataclass
class Attached:
    """What was named, in that order and each file once; and how many files of folders and patterns were left out, with
    the first of them, by the reason."""

    files: list[File] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        return sum(file.n_bytes for file in self.files)

    def about(self) -> str:
        """What was read and what was not, in a few words."""
        count = f"{len(self.files):,} file{'s' * (len(self.files) != 1)}"
        parts = [f"{len(names):,} {why} ({_some(names)})" for why, names in self.left_out.items()]
        return count + (f", left out: {'; '.join(parts)}" if parts else "")

    def largest(self) -> str:
        """The files that take most, for who has to do without some."""
        ordered = sorted(self.files, key=lambda file: -file.n_bytes)[:NAMED]
        return ", ".join(f"{file.name} ({file.n_bytes:,} bytes)" for file in ordered)

    def add(self, name: str, folder: Path) -> bool:
        """Read what `name` means in `folder`: a file, all files of a folder but what git ignores, or what matches a
        pattern. Whether it means anything. UsageError for what cannot be read, and for more than may be."""
        path = folder / paths.expanded(name)
        if os.path.isdir(path):
            found = self._add_all(_below(path), folder)
            if not found:
                why = _reasons(self.left_out) or "it is empty, or git ignores all that is in it"
                raise UsageError(f"{name}: no text in this folder ({why})", "name the files themselves")
            return True
        if os.path.lexists(path) or not any(character in name for character in PATTERN):
            return os.path.exists(path) and self._add(path, folder)
        matches = list(islice(glob.iglob(str(paths.expanded(name)), root_dir=folder, recursive=True), MOST_SEEN))
        if len(matches) == MOST_SEEN:
            raise UsageError(f"{name}: more than {MOST_SEEN - 1:,} files match", "name fewer, by folders or patterns")
        matches.sort()
        kept = _not_ignored([folder / match for match in matches], folder)
        return bool(kept) and self._add_all(kept, folder)

    def _add_all(self, found: Iterable[Path], folder: Path) -> bool:
        """What is text among files; whether there is any."""
        any_text = False
        for path in found:
            shown = shown_path(path, folder)
            try:
                mode = path.lstat().st_mode
                if stat.S_ISDIR(mode):
                    continue
                if not stat.S_ISREG(mode):
                    self._leave_out("no regular file" if not stat.S_ISLNK(mode) else "a link", shown)
                elif b"\0" in _beginning(path):
                    self._leave_out("binary", shown)
                else:
                    any_text |= self._add(path, folder, among_others=True)
            except OSError as error:
                self._leave_out(error.strerror or "not readable", shown)
        return any_text

    def _add(self, path: Path, folder: Path, among_others: bool = False) -> bool:
        """One file, unless it has been read. UsageError; of one among others that is no text, `left_out` tells."""
        same = path.resolve()
        if any(file.path == same for file in self.files):
            return True
        shown = shown_path(path, folder)
        with hinted(f"ls -l {shown}"):
            data = read_path(path, MOST_BYTES, shown)
        try:
            with hinted(f"file {shown} tells what it is; the model reads text in UTF-8"):
                text = decoded(data, shown)
        except UsageError:
            if not among_others:
                raise
            self._leave_out("not UTF-8", shown)
            return False
        self.files.append(File(shown, len(data), text, same))
        if self.n_bytes > MOST_BYTES or len(self.files) > MOST_FILES:
            most = f"{MOST_FILES:,} files" if len(self.files) > MOST_FILES else f"{MOST_BYTES >> 20} MiB of text"
            raise UsageError(f"more than {most}, with {shown}; the largest: {self.largest()}", "name fewer files")
        return True

    def _leave_out(self, why: str, name: str) -> None:
        self.left_out.setdefault(why, []).append(name)


def shown_path(path: Path, folder: Path) -> str:
    """A path as it is named in a folder."""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _below(folder: Path) -> Iterator[Path]:
    """The files of a folder in order: in a repository those that git does not ignore, elsewhere those that are not
    hidden. UsageError where git cannot tell."""
    listed = _git(["ls-files", "--cached", "--others", "--exclude-standard", "-z"], folder)
    if listed is not None:
        names = dict.fromkeys(sorted(filter(None, listed.split(b"\0"))))
        yield from (path for name in names if os.path.lexists(path := folder / os.fsdecode(name)))
        return
    n_seen, found = 0, []
    for path, entries, below in tree.folders(str(folder)):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [Path(path, entry.name) for entry in entries if not entry.name.startswith(".") and not entry.is_dir()]
        n_seen += len(entries)
        if n_seen >= MOST_SEEN:
            raise UsageError(f"{folder}: more than {MOST_SEEN - 1:,} files", "name fewer, by folders or patterns")
    yield from sorted(found)


def _not_ignored(found: list[Path], folder: Path) -> list[Path]:
    """Those that git does not ignore; all where there is no repository."""
    given = b"\0".join(os.fsencode(path) for path in found)
    ignored = _git(["check-ignore", "-z", "--stdin"], folder, given) if found else None
    if ignored is None:
        return found
    gone = set(ignored.split(b"\0"))
    return [path for path in found if os.fsencode(path) not in gone]


def _git(arguments: list[str], folder: Path, given: bytes = b"") -> bytes | None:
    """What git prints; None where there is no repository. UsageError where there is one that git cannot read."""
    environment = {**os.environ, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run([*GIT, *arguments], cwd=folder, input=given, capture_output=True, env=environment)
        if done.stderr.startswith(b"xcrun:"):  # macOS has a program of this name that only says so
            raise FileNotFoundError
    except FileNotFoundError:
        if not any((above / ".git").exists() for above in (folder.resolve(), *folder.resolve().parents)):
            return None
        raise UsageError("git is not installed, which knows what this repository ignores", GET_GIT) from None
    if done.returncode in (0, 1):
        return done.stdout
    said = done.stderr.decode(errors="replace").strip()
    if "not a git repository" in said or "outside repository" in said:
        return None
    raise UsageError(f"{folder}: git cannot tell what to read ({on_one_line(said)[:200]})", "name the files themselves")


def _beginning(path: Path) -> bytes:
    with open(system.open_file(path, os.O_RDONLY, follow=False), "rb") as file:
        return file.read(8192)


def _some(names: list[str]) -> str:
    return ", ".join([*names[:NAMED], *(["…"] if len(names) > NAMED else [])])


def _reasons(left_out: dict[str, list[str]]) -> str:
    return ", ".join(f"{len(names):,} {why}" for why, names in left_out.items())


def attached(names: Iterable[str], folder: Path, stdin: Callable[[], bytes]) -> Attached:
    """All that names on a command line mean, - for what `stdin` reads. UsageError names the first that means none."""
    found = Attached()
    for name in names:
        if name == "-":
            data = stdin()
            found.files.append(File("stdin", len(data), decoded(data, "stdin")))
        elif not found.add(name, folder):
            raise missing(name, folder)
    return found


def missing(name: str, folder: Path) -> UsageError:
    """The error for a name that means nothing, with the name that may have been meant."""
    import difflib

    if "://" in name:
        return UsageError(f"{name}: an address, not a file", f"curl -sL {name} | v4 run -f - WORDS")
    if any(character in name for character in PATTERN):
        return UsageError(f"{name}: no file matches this in {folder}", f"ls -d {name.partition('*')[0] or '.'}*")
    path = folder / paths.expanded(name)
    if os.path.lexists(path):
        return UsageError(f"{name}: a link that leads nowhere", f"ls -l {name}")
    there = os.listdir(path.parent) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, there, 1)
    hint = f"did you mean {shown_path(path.parent / near[0], folder)}?" if near else f"ls {path.parent}"
    return UsageError(f"{name}: cannot be read (No such file or directory)", hint)
