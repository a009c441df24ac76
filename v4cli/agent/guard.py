"""Keeps what the user's programs trust in a workspace out of reach of a run: what is there is read-only to it, and what
it leaves anew is renamed, once nothing of it runs any more, so that nobody obeys it."""

import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator

from v4cli.agent import named, outside, tree, trusted
from v4cli.agent.tools import ToolError
from v4cli.clean import visible

MAX_ENTRIES = 2_000_000  # files and folders of a workspace
MAX_READ_ONLY = 1000  # each is a mount
MAX_TOLD = 5
MAX_NAME = 255  # bytes
SUFFIX = ".disarmed"
READ_ONLY = "Operation not permitted" if sys.platform == "darwin" else "Read-only file system"  # what programs say

Identity = tuple[int, int]  # device, inode


class Guard:
    """What is trusted in the real path `folder` before a run. ToolError if it cannot be kept safe; `cancelled` ends the
    looking around.

    `read_only`: paths to mount read-only. `n_entries`: files and folders there are, without those inside of
    `read_only`.
    """

    def __init__(self, folder: str, cancelled: Callable[[], bool] = lambda: False):
        self.folder = folder
        self.read_only: list[str] = []
        self.n_entries = 0
        self.known: set[Identity] = set()
        self.inodes: set[int] = set()  # of `known`
        self.special: set[Identity] = set()
        self.pointers: dict[Identity, list[str]] = {}  # of each repository, relative to its work tree
        self.places: list[str] = []  # where something would be obeyed, whatever links lead there
        self.twins: set[int] = set()  # inodes of what is obeyed and has other names, perhaps in the workspace
        self._look_outside()
        for path, entries, below in tree.folders(folder, self._unreadable):
            if cancelled():
                raise ToolError("the user interrupted it")
            self.n_entries += len(entries)
            if self.n_entries > MAX_ENTRIES:
                raise ToolError(f"the workspace holds more than {MAX_ENTRIES:,} files; start v4 in a smaller folder")
            self._look(path, entries, below)
        if self.twins:
            self._look_for_twins()
        self.read_only = _outermost(self.read_only)
        if len(self.read_only) > MAX_READ_ONLY:
            raise ToolError(f"the workspace holds more than {MAX_READ_ONLY:,} repositories and settings of programs")

    def _look_outside(self) -> None:
        """Note what is trusted because something outside of the workspace says so."""
        for path in outside.kept_by_v4():  # made now, for what v4 makes while something runs is not the run's
            if trusted.within(path, self.folder) and not path.endswith(".toml"):
                os.makedirs(path, 0o700, exist_ok=True)
        for path in outside.obeyed(self.folder):
            if path != self.folder:
                self.places += [path] * trusted.within(path, self.folder)
                self._protect(path)
        for above in trusted.ancestors(os.path.dirname(self.folder)):
            if os.path.lexists(git := os.path.join(above, ".git")):
                self._repository(git, above)

    def _look(self, path: str, entries: list[os.DirEntry], below: list[str]) -> None:
        """Note what is trusted in one folder."""
        names = {entry.name.lower() for entry in entries}
        environment = trusted.is_environment(path, names)
        if path != self.folder and (environment or trusted.is_repository(names)):
            self._repository(path, path) if trusted.is_repository(names) else self._protect(path)
            below.clear()
            return
        for entry in entries:
            if trusted.is_git(entry.name):
                self._repository(entry.path, path)
            elif trusted.obeyed_by(entry.name) or (environment and entry.name.lower() in trusted.ENVIRONMENT_PARTS):
                self._protect(entry.path)
            elif _is_special(entry):
                self.special.add(_identity(entry.path))
        self._leave_out(entries, below)

    def _repository(self, git: str, top: str) -> None:
        """Protect a repository, what it is put together of, and what its settings and hooks lead to."""
        found = named.by_git(top)
        for path in named.repository_of(git):
            found += self._protect(path, True)
        for path in list(found):
            if trusted.within(self.folder, os.path.realpath(path)):
                raise ToolError(f"the settings of git in {top} make it run whatever lies in {path}: change them")
            found += self._protect(path, True)
        if (identity := _identity(git)) is not None:
            self.pointers[identity] = [os.path.relpath(path, top) for path in found]
        self.places += found

    def _protect(self, path: str, wherever: bool = False) -> list[str]:
        """Make what is at a path read-only, wherever links lead to, and what links below it lead to if it is in the
        workspace, or `wherever` it is; where all these links lead, one by one."""
        found, todo = [], [path]
        while todo:
            path = todo.pop()
            real = os.path.realpath(path)
            ways = [*named.steps(path)[1:], *([real] if real != path else [])]  # none may come, or become another
            found += ways
            identity = _identity(real)
            if identity is None or identity in self.known or trusted.within(self.folder, real):
                continue
            self.known.add(identity)
            self.inodes.add(identity[1])
            self._note_twin(real)
            is_inside = trusted.within(real, self.folder)
            self.read_only += [real] * is_inside
            if is_inside or wherever:
                links, twins = named.linked(real)
                todo += links
                for twin in twins:
                    self._note_twin(twin)
        self.places += found
        return found

    def _note_twin(self, path: str) -> None:
        with contextlib.suppress(OSError):
            if named.has_twin(path):
                self.twins.add(os.stat(path).st_ino)

    def _look_for_twins(self) -> None:
        """Protect files that are obeyed under another name, by a hard link: who writes the one writes the other."""
        for _, entries, below in tree.folders(self.folder):
            self._leave_out(entries, below)
            for entry in entries:
                if entry.inode() in self.twins and not entry.is_symlink():
                    self.read_only.append(entry.path)
                    self.known.add(_identity(entry.path))

    def _unreadable(self, path: str) -> bool:
        """What cannot be looked into stays as it is."""
        self._protect(path)
        return False

    def _leave_out(self, entries: list[os.DirEntry], below: list[str]) -> list[os.DirEntry]:
        """Take folders that are protected as a whole from those to be visited; all entries that are known."""
        known = [e for e in entries if self._may_be_known(e) and _identity(e.path) in self.known]
        names = {entry.name for entry in known}
        below[:] = [name for name in below if name not in names]
        return known

    def _may_be_known(self, entry: os.DirEntry) -> bool:
        """What needs no look at the disk: links have another number than what they lead to."""
        return entry.inode() in self.inodes or trusted.obeyed_by(entry.name) != ""

    def sizes(self) -> Iterator[int]:
        """How many entries folder after folder has, as `n_entries` counts them."""
        for _, entries, below in tree.folders(self.folder):
            self._leave_out(entries, below)
            yield len(entries)

    def clear(self) -> list[str]:
        """Disarm what is new; its names, for people. Nothing of the run may be running any more."""
        told: list[str] = []
        moved: list[str] = []
        for path, entries, below in tree.folders(self.folder, self._opened):
            known = {entry.name for entry in self._leave_out(entries, below)}
            repository = trusted.is_repository({entry.name.lower() for entry in entries})
            for entry in entries:
                if entry.name in known:
                    top = path if trusted.is_git(entry.name) else entry.path
                    moved += [os.path.join(top, p) for p in self.pointers.get(_identity(entry.path), ())]
                elif entry.is_symlink() and _leads_to(entry.path) in self.places:
                    continue
                elif trusted.obeyed_by(entry.name) or (repository and entry.name.lower() == "head"):
                    told.append(self._disarm(entry.path, below))
                elif _is_special(entry) and _identity(entry.path) not in self.special:
                    with contextlib.suppress(OSError):
                        os.unlink(entry.path)
        for path in dict.fromkeys(map(os.path.normpath, [*self.places, *moved])):
            above = os.path.realpath(os.path.dirname(path))
            path = os.path.join(above, os.path.basename(path))
            if os.path.lexists(path) and trusted.within(above, self.folder) and _identity(path) not in self.known:
                told.append(self._disarm(path, []))
        return told

    def _opened(self, path: str) -> bool:
        """Let v4 look into a folder that the run has closed."""
        try:
            if _identity(path) in self.known:
                return False
            os.chmod(path, 0o700)
        except OSError:
            return False
        return True

    def _disarm(self, path: str, below: list[str]) -> str:
        """Rename it; what is said of it. `below`, names of folders yet to be visited, is kept right."""
        folder, name = os.path.split(path)
        new = next(new for new in _candidates(name) if not os.path.lexists(os.path.join(folder, new)))
        shown = os.path.relpath(path, self.folder) if trusted.within(path, self.folder) else f"…/{name}"
        try:
            with _changeable(folder):
                os.rename(path, os.path.join(folder, new))
        except OSError as error:
            return f"{shown} (it could NOT be renamed, {error.strerror}: remove it)"
        below[:] = [new if name == entry else entry for entry in below]
        return f"{shown} (now {new})"


def refusal(folder: str, parts: tuple[str, ...]) -> str:
    """Who would obey the file at these names below the workspace `folder`; empty if nobody would. Both real paths."""
    path = os.path.join(folder, *parts)
    for n, name in enumerate(parts):
        above = os.path.join(folder, *parts[:n])
        if who := trusted.obeyed_by(name):
            return who
        if trusted.is_repository(trusted.present(above, trusted.REPOSITORY) | {name.lower()}):
            return trusted.GIT
        if name.lower() in trusted.ENVIRONMENT_NAMES | trusted.PACKAGES:
            return trusted.ENVIRONMENT
    for home in outside.homes():
        if trusted.within(home, folder) and trusted.within(path, home) and os.path.relpath(path, home).startswith("."):
            return "what reads your home folder"
    if trusted.repository_around(folder):
        return trusted.GIT
    its = Guard(folder)
    held = any(trusted.within(path, os.path.realpath(place)) for place in (*its.read_only, *its.places))
    return "git or another program" if held else ""


def note(guard: Guard, disarmed: list[str], text: str) -> str:
    """What the model and the user are told after a run that printed `text`."""
    lines = []
    if disarmed:
        more = f" and {len(disarmed) - MAX_TOLD} more" if len(disarmed) > MAX_TOLD else ""
        what = ", ".join(map(_on_one_line, disarmed[:MAX_TOLD])) + more
        lines.append(
            f"disarmed, as programs of the user would obey it unasked: {what}; only the user can put it in place"
        )
    if READ_ONLY in text and guard.read_only:
        paths = [_on_one_line(os.path.relpath(path, guard.folder)) for path in guard.read_only]
        what = ", ".join(paths[:MAX_TOLD]) + (" …" if len(paths) > MAX_TOLD else "")
        lines.append(f"read-only here: {what}; ask the user to commit or to change it")
    return "\n".join(f"[{line}]" for line in lines)


def _on_one_line(name: str) -> str:
    return visible(name).replace("\n", "\u240a").replace("\t", "\u2409")


def _outermost(paths: list[str]) -> list[str]:
    """Those that lie in no other of them."""
    kept: list[str] = []
    for path in sorted(set(paths), key=lambda path: path.split("/")):
        if not kept or not trusted.within(path, kept[-1]):
            kept.append(path)
    return kept


def _candidates(name: str) -> Iterator[str]:
    """Names for something that must not have its own any more."""
    name = os.fsdecode(os.fsencode(name)[: MAX_NAME - len(SUFFIX) - 9])
    yield name + SUFFIX
    yield from (f"{name}{SUFFIX}-{n}" for n in itertools.count(2))


@contextlib.contextmanager
def _changeable(folder: str) -> Iterator[None]:
    """A folder in which names can be changed, while the context lasts."""
    mode = os.stat(folder).st_mode & 0o7777
    if mode & 0o300 == 0o300:
        yield
        return
    os.chmod(folder, mode | 0o300)
    try:
        yield
    finally:
        os.chmod(folder, mode)


def _identity(path: str) -> Identity | None:
    """What is there, by links too; None if nothing is."""
    try:
        about = os.stat(path)
    except (OSError, ValueError):
        return None
    return about.st_dev, about.st_ino


def _leads_to(link: str) -> str:
    """What is missing where a link leads to; empty if nothing is."""
    return "" if os.path.exists(link) else os.path.realpath(link)


def _is_special(entry: os.DirEntry) -> bool:
    """Whether it is a FIFO, a socket or a device."""
    if entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False):
        return False
    return not entry.is_symlink()
