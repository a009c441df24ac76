"""What lies outside of a workspace and makes the user's programs obey something in it: variables of the environment,
links in home folders and on the PATH, what v4 keeps and starts."""

import os
import re
from collections.abc import Iterator

from v4cli import paths, settings, system
from v4cli.agent import named
from v4cli.errors import V4Error

FOLDERS = re.compile(r"PATH|LD_\w+")  # variables with lists of folders and files
BETWEEN = re.compile("[ :]" if os.pathsep == ":" else ";")  # what these lists have between their entries
FILES = re.compile(  # with files and folders, and nothing else
    r"GIT_(CONFIG|CONFIG_GLOBAL|CONFIG_SYSTEM|DIR|COMMON_DIR|EXEC_PATH|TEMPLATE_DIR)|BASH_ENV|ENV|ZDOTDIR|INPUTRC|"
    r"LESSKEY\w*|XDG_CONFIG_(HOME|DIRS)|PYTHONSTARTUP|PYTHONHOME|VIRTUAL_ENV"
)
COMMANDS = re.compile(  # variables that say what to run, or options of programs that do
    r"GIT_(?!WORK_TREE|CEILING)\w+|(SUDO_)?EDITOR|VISUAL|(MAN)?PAGER|LESS(OPEN|CLOSE)|SSH_ASKPASS|NODE_OPTIONS|"
    r"PERL5OPT|RUBYOPT|VIMINIT|EXINIT|BROWSER"
)
SYSTEM = re.compile("/usr/(?!local).*|/s?bin")  # folders of the PATH that only lead to their own


def homes() -> list[str]:
    """Home folders of the user, whatever HOME says: that of the password file and that of who called sudo count too."""
    found = [os.environ.get(name, "") for name in ("HOME", "USERPROFILE")]
    for uid in (os.getuid() if hasattr(os, "getuid") else "", os.environ.get("SUDO_UID", "")):
        try:
            found.append(system.home_of(uid))
        except (KeyError, ValueError, OverflowError):
            pass
    return list(dict.fromkeys(os.path.realpath(home) for home in found if os.path.isabs(home)))


def obeyed(folder: str) -> list[str]:
    """Paths that are obeyed, in the workspace `folder` and elsewhere; they need not exist."""
    found = [*_of_environment(folder), *_of_path(folder), *_of_homes(), *_of_servers(folder), *kept_by_v4()]
    return list(dict.fromkeys(map(os.path.normpath, found)))


def kept_by_v4() -> list[str]:
    """Where v4 keeps settings, rules, conversations, models and computed contexts."""
    found = (paths.config_file(), paths.state_dir(), paths.models_dir(), paths.chats_dir())
    found += (paths.prefixes_dir(), paths.use_dir())
    home = os.environ.get("V4_HOME")
    return [os.path.realpath(path) for path in (*found, *([home] if home else ()))]


def _of_environment(folder: str) -> Iterator[str]:
    """What variables name; a path that is not absolute counts from the workspace, where the user works."""
    for name, value in os.environ.items():
        if FOLDERS.fullmatch(name):
            yield from (os.path.join(folder, entry) for entry in BETWEEN.split(value) if entry)
        elif FILES.fullmatch(name):
            yield from (os.path.join(folder, word) for word in re.split(r"[\s:='\"]", value) if word)
        elif COMMANDS.fullmatch(name):
            yield from filter(os.path.isabs, re.split(r"[\s:='\"]", value))
            yield from named.in_command(folder, value)


def _of_path(folder: str) -> Iterator[str]:
    """Programs on the PATH that are links, also hard ones."""
    for place in dict.fromkeys(os.get_exec_path()):
        if place and not SYSTEM.fullmatch(place):
            yield from (entry.path for entry in _listed(os.path.join(folder, place)) if _is_linked(entry))


def _of_homes() -> Iterator[str]:
    """Hidden entries of home folders and what is right below them, and below those of .config."""
    for home in homes():
        hidden = [entry for entry in _listed(home) if entry.name.startswith(".")]
        for entry in [*hidden, *_listed(os.path.join(home, ".config"))]:
            yield entry.path
            yield from (below.path for below in _listed(entry.path) if _is_linked(below))


def _of_servers(folder: str) -> Iterator[str]:
    """What the commands of MCP servers name, which v4 starts unasked."""
    try:
        servers = settings.load().mcp.values()
    except V4Error:  # v4 does not start with these
        return
    for server in servers:
        top = os.path.join(folder, os.path.expanduser(server.cwd or ""))
        for word in server.command:
            yield from (os.path.join(top, word), *named.in_command(top, word))
        yield from (value for value in server.env.values() if os.path.isabs(value))


def _listed(folder: str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _is_linked(entry: os.DirEntry) -> bool:
    try:
        return entry.is_symlink() or (entry.is_file() and os.stat(entry.path).st_nlink > 1)  # Windows lists no counts
    except OSError:
        return False
