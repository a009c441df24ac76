"""Files that commands, git's settings and links name, for whoever has to keep them from being written."""

import itertools
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator

from v4cli.agent import tree
from v4cli.errors import ModelError
from v4cli.files import contents

INCLUDES = re.compile(r"include(if\..*)?\.path")
INTERPRETER = re.compile(r"(.*/)?((ba|da|fi|k|z)?sh|env|(python|pypy|perl|ruby|lua)[\d.]*|node|php|deno|bun)")
FOLDERS = {"core.hookspath", "init.templatedir"}  # settings of git whose value is a path, with a slash or without
CHANGES = {"cd", "pushd", "-C", "--chdir"}  # words before a folder in which the rest of a command runs
HISTORY = {"objects", "refs", "logs"}  # folders in a repository in which nothing is obeyed
LARGE = {"lib", "lib64", "store"}  # folders of other things that are not searched for hard links
MAX_CHANGES = 4  # of the folder, in one command
MAX_STEPS = 40  # links one after the other, as in the kernel


def in_command(top: str, text: str) -> Iterator[str]:
    """Paths in a command that runs in `top`. A word without a slash is a file only where a shell or Python is told to
    run it, or where one is there; one with a slash first may follow `$(git rev-parse ...)`."""
    words = _words(os.path.expandvars(text))
    rest = [words[n + 1 :] for n, word in enumerate(words) if INTERPRETER.fullmatch(word)]
    scripts = {next((word for word in after if not word.startswith("-")), "") for after in rest}
    tops = [top]
    for inner in [word for before, word in itertools.pairwise(words) if before in CHANGES][:MAX_CHANGES]:
        tops += [os.path.join(at, os.path.expanduser(inner)) for at in tops]
    for word in words:
        is_named = "/" in word or word in scripts
        for plain in dict.fromkeys((os.path.expanduser(word), word.lstrip("/"))):
            for path in (os.path.join(at, plain) for at in tops):
                if (is_named and not os.path.isdir(path)) or (len(words) > 1 and os.path.isfile(path)):
                    yield path


def by_git(top: str) -> list[str]:
    """Paths that git's settings, in the work tree or bare repository `top`, name as something to run or to include;
    they need not exist."""
    found: list[str] = []
    todo, seen = [""], set()
    while todo:
        for origin, key, value in _settings(top, todo.pop()):
            kind, _, file = origin.partition(":")
            file = os.path.join(top, file) if kind == "file" else ""
            seen.add(file)
            found += [file] * bool(file)
            if INCLUDES.fullmatch(key):
                included = os.path.normpath(os.path.join(top, os.path.dirname(file), os.path.expanduser(value)))
                found.append(included)
                if included not in seen:  # on a condition that another branch or folder may fulfil
                    seen.add(included)
                    todo.append(included)
            elif key in FOLDERS:
                found.append(os.path.join(top, os.path.expanduser(value)))
            else:
                found += in_command(top, value.lstrip("!"))
    return [os.path.normpath(path) for path in dict.fromkeys(found)]


def repository_of(path: str) -> list[str]:
    """Folders that an entry `.git` leads git to: where it is a file, the one it names, and what that one shares."""
    found = [path]
    if os.path.isfile(path):
        found.append(_named_in(path, "gitdir:"))
    if found[-1]:
        found.append(_named_in(os.path.join(found[-1], "commondir")))
    return list(filter(None, found))


def linked(folder: str) -> tuple[list[str], list[str]]:
    """The symbolic links in a folder whose files are obeyed, and the files that have another name somewhere."""
    links, twins = [], []
    for _, entries, below in tree.folders(folder):
        links += [entry.path for entry in entries if entry.is_symlink() and entry.name not in LARGE]
        twins += [entry.path for entry in entries if entry.is_file(follow_symlinks=False) and has_twin(entry.path)]
        below[:] = [name for name in below if name not in HISTORY | LARGE]
    return links, twins


def has_twin(path: str) -> bool:
    """Whether it is a file that has another name, by a hard link."""
    return os.path.isfile(path) and os.stat(path).st_nlink > 1


def steps(path: str) -> list[str]:
    """The path, and where links lead from it, one by one; the last need not exist."""
    found = [path]
    while os.path.islink(path) and len(found) < MAX_STEPS:
        path = os.path.normpath(os.path.join(os.path.realpath(os.path.dirname(path)), os.readlink(path)))
        found.append(path)
    return found


def _settings(top: str, file: str = "") -> Iterator[tuple[str, str, str]]:
    """Origin, name and value of each setting of git, or of those in a file. Git itself tells them, for which it runs
    nothing."""
    git = shutil.which("git")
    if not git:
        return
    command = [git, "--no-pager", "config", *(["--file", file] if file else []), "--list", "--show-origin", "-z"]
    try:
        done = subprocess.run(
            [*command, "--includes"], cwd=top, stdin=subprocess.DEVNULL, capture_output=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return
    told = done.stdout.decode("utf-8", "surrogateescape").split("\0")
    for origin, setting in zip(told[::2], told[1::2], strict=False):
        key, _, value = setting.partition("\n")
        yield origin, key, value


def _words(text: str) -> list[str]:
    """Words of a command, taken generously: with quotes obeyed, and with quotes and what separates commands as gaps."""
    words = re.split(r"[\s;&|()<>`\"']+", text)
    try:
        words += shlex.split(text)
    except ValueError:
        pass
    return list(filter(None, words))


def _named_in(file: str, prefix: str = "") -> str:
    """The path that a small file of git names, relative to where the file is; empty if it names none."""
    try:
        text = os.fsdecode(contents(file, 1 << 16)).strip()
    except ModelError:
        return ""
    return os.path.join(os.path.dirname(file), text.removeprefix(prefix).strip()) if text.startswith(prefix) else ""
