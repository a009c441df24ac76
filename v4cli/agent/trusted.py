"""What of a workspace the user's other programs run or obey without being asked to, and a model must therefore not
write: in the sandbox it is read-only, or taken away if it is new (`guard`), and `write_file` refuses it.

The line: what acts when users change into a folder, open an editor, type a command of git, start a shell or start v4.
Not behind it: what they run by name (a Makefile, tests, scripts), and what hooks of their own call.
"""

import os
import pwd
import re
import shlex
import shutil
import subprocess
from collections.abc import Collection, Iterator

from v4cli import paths, settings
from v4cli.agent import tree
from v4cli.errors import ModelError
from v4cli.files import contents

GIT = "git"
HISTORY = {"objects", "refs", "logs"}  # folders in a repository in which nothing is obeyed
REPOSITORY = ("head", "refs", "commondir")  # names by which git knows a folder of its own
NAMES = {  # files and folders of these names, wherever they lie, by who obeys them
    GIT: (".git", "git~1", ".gitconfig", ".husky", ".pre-commit-config.yaml", ".pre-commit-config.yml",
          ".overcommit.yml", "lefthook.yml", "lefthook.yaml", "lefthook.toml", "lefthook.json", ".lefthook.yml",
          ".lefthook.yaml", ".lefthook.toml", ".lefthook.json", "lefthook-local.yml", ".lefthook-local.yml"),
    "another version control": (".hg", ".jj", ".bzr"),
    "a shell that changes into the folder": (".envrc", ".autoenv", ".autoenv.zsh", ".rvmrc", ".mise", "mise.toml",
          ".mise.toml", "mise.local.toml", ".mise.local.toml", ".rtx.toml", ".direnv", ".devbox", ".devenv"),
    "an editor that opens the folder": (".vscode", ".cursor", ".windsurf", ".zed", ".fleet", ".idea", ".vs", ".vim",
          ".helix", ".theia", ".lite_project.lua",
          ".vimrc", ".gvimrc", ".lvimrc", ".local.vimrc", ".exrc", ".nvimrc", ".nvim.lua", ".lazy.lua",
          ".dir-locals.el", ".dir-locals-2.el", ".ycm_extra_conf.py"),
    "a shell that starts": (".bashrc", ".bash_profile", ".bash_login", ".bash_logout", ".bash_aliases", ".profile",
          ".zshrc", ".zshenv", ".zprofile", ".zlogin", ".zlogout", ".kshrc", ".mkshrc", ".cshrc", ".tcshrc", ".login",
          ".logout", ".inputrc", ".direnvrc", ".xprofile", ".xinitrc", ".xsession", ".xsessionrc"),
    "Python that starts": ("sitecustomize.py", "usercustomize.py"),
    "v4": (settings.PROJECT_FILE,),
}  # fmt: skip
ENDINGS = {".code-workspace": "an editor that opens it", ".sublime-project": "an editor that opens it"}
IGNORED = re.compile("[\u200c-\u200f\u202a-\u202e\u206a-\u206f\ufeff]")  # in names, by HFS+
OBEYED_BY = {name: who for who, names in NAMES.items() for name in names}

# Environments of Python: those that are there are trusted; a new one is nothing before somebody makes use of it.
ENVIRONMENT, ENVIRONMENT_NAMES, ENVIRONMENT_MARKS = "Python that starts", {".venv"}, {"pyvenv.cfg", "conda-meta"}
ENVIRONMENT_PARTS = {"bin", "lib", "lib64", "pyvenv.cfg", "conda-meta", "scripts"}
PACKAGES = {"site-packages", "dist-packages"}  # a .pth file there is run by every Python

VARIABLES = re.compile(  # of the user's environment, whose values name programs and files that are obeyed
    r"PATH|LD_\w+|GIT_(?!WORK_TREE|CEILING)\w+|BASH_ENV|ENV|ZDOTDIR|XDG_CONFIG_(HOME|DIRS)|PYTHONSTARTUP|PYTHONHOME|VIRTUAL_ENV|EDITOR|VISUAL|"
    r"PAGER|SSH_ASKPASS|NODE_OPTIONS|PERL5OPT|RUBYOPT|VIMINIT|EXINIT"
)
INCLUDES = re.compile(r"include(if\..*)?\.path")
INTERPRETER = re.compile(r"(.*/)?((ba|da|fi|k|z)?sh|env|(python|pypy|perl|ruby|lua)[\d.]*|node|php|deno|bun)")
FOLDERS = {"core.hookspath", "init.templatedir"}  # settings of git whose value is a path, with a slash or without


def obeyed_by(name: str) -> str:
    """Who obeys a file or folder of this name, wherever it lies; empty if nobody does."""
    plain = _plain(name)
    return OBEYED_BY.get(plain) or ENDINGS.get(os.path.splitext(plain)[1], "")


def is_git(name: str) -> bool:
    """Whether git takes what has this name for the repository of the folder around it."""
    return _plain(name) in (".git", "git~1")


def _plain(name: str) -> str:
    """A name as file systems take it that know no case, no dots and spaces at the end, or no characters of no width."""
    return (name if name.isascii() else IGNORED.sub("", name)).rstrip(". ").lower()


def is_repository(names: Collection[str]) -> bool:
    """Whether git may take a folder with these names (in lower case) for a repository, such as a bare one."""
    return "head" in names and ("refs" in names or "commondir" in names)


def is_environment(path: str, names: Collection[str]) -> bool:
    """Whether a folder with these names (in lower case) holds an environment of Python."""
    return os.path.basename(path) in ENVIRONMENT_NAMES | PACKAGES or not ENVIRONMENT_MARKS.isdisjoint(names)


def repository_around(folder: str) -> str:
    """The repository whose own folder this is or lies in, where whatever is written may be run; empty if none is."""
    for path in ancestors(folder):
        if obeyed_by(os.path.basename(path)) == GIT or is_repository(present(path, REPOSITORY)):
            return path
    return ""


def homes() -> list[str]:
    """Home folders of the user, whatever HOME says: that of the password file and that of who called sudo count too."""
    found = [os.environ.get("HOME", "")]
    for uid in (os.getuid(), os.environ.get("SUDO_UID", "")):
        try:
            found.append(pwd.getpwuid(int(uid)).pw_dir)
        except (KeyError, ValueError, OverflowError):
            pass
    return list(dict.fromkeys(os.path.realpath(home) for home in found if os.path.isabs(home)))


def places(folder: str) -> list[str]:
    """Paths below a workspace that something outside of it makes the user's programs obey: the environment, links in
    home folders, and what v4 keeps there."""
    named = [*_of_environment(), *_of_homes(), *map(str, kept_by_v4())]
    return [path for path in named if within(path, folder) and path != folder]


def kept_by_v4() -> list[str]:
    """Where v4 keeps settings, rules, conversations, models and computed contexts."""
    found = (paths.config_file(), paths.state_dir(), paths.models_dir(), paths.chats_dir())
    found += (paths.prefixes_dir(), paths.use_dir())
    home = os.environ.get("V4_HOME")
    return [os.path.realpath(path) for path in (*found, *([home] if home else ()))]


def pointers(top: str) -> list[str]:
    """Paths that git's settings, in the work tree or bare repository `top`, name as something to run or to include;
    they need not exist. Git itself tells its settings, for which it runs nothing."""
    git = shutil.which("git")
    if not git:
        return []
    command = [git, "--no-pager", "config", "--list", "--show-origin", "--includes", "-z"]
    try:
        done = subprocess.run(command, cwd=top, stdin=subprocess.DEVNULL, capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    told = done.stdout.decode("utf-8", "surrogateescape").split("\0")
    found = []
    for origin, setting in zip(told[::2], told[1::2], strict=False):
        key, _, value = setting.partition("\n")
        found += _paths_of(top, origin, key, value)
    return [os.path.normpath(path) for path in dict.fromkeys(found)]


def repository_of(path: str) -> list[str]:
    """Folders that an entry `.git` leads git to: where it is a file, the one it names, and what that one shares."""
    found = [path]
    if os.path.isfile(path):
        found.append(_named_in(path, "gitdir:"))
    if found[-1]:
        found.append(_named_in(os.path.join(found[-1], "commondir")))
    return list(filter(None, found))


def links(folder: str) -> Iterator[str]:
    """Where the links in a folder of git, such as its hooks, lead to, which need not be there."""
    for path, entries, below in tree.folders(folder):
        yield from (os.path.realpath(os.path.join(path, entry.name)) for entry in entries if entry.is_symlink())
        below[:] = [name for name in below if name not in HISTORY]


def within(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies below it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def ancestors(folder: str) -> Iterator[str]:
    """The folder, the one above it, and so on."""
    yield folder
    while (above := os.path.dirname(folder)) != folder:
        folder = above
        yield folder


def _paths_of(top: str, origin: str, key: str, value: str) -> Iterator[str]:
    """Paths in one setting, and that of the file it is from. A word without a slash is a file only where a shell or
    Python is told to run it, or where one is there; one with a slash first may follow `$(git rev-parse ...)`."""
    kind, _, file = origin.partition(":")
    if kind == "file":
        yield os.path.join(top, file)
    if INCLUDES.fullmatch(key):
        yield os.path.join(top, os.path.dirname(file), os.path.expanduser(value))
    elif key in FOLDERS:
        yield os.path.join(top, os.path.expanduser(value))
    else:
        words = _words(os.path.expandvars(value.lstrip("!")))
        rest = [words[n + 1 :] for n, word in enumerate(words) if INTERPRETER.fullmatch(word)]
        scripts = {next((word for word in after if not word.startswith("-")), "") for after in rest}
        for word in words:
            named = "/" in word or word in scripts
            for path in dict.fromkeys(
                (os.path.join(top, os.path.expanduser(word)), os.path.join(top, word.lstrip("/")))
            ):
                if (named and not os.path.isdir(path)) or (len(words) > 1 and os.path.isfile(path)):
                    yield path


def _words(text: str) -> list[str]:
    """Words of a command, taken generously: with quotes obeyed, and with quotes and what separates commands as gaps."""
    words = re.split(r"[\s;&|()<>`\"']+", text)
    try:
        words += shlex.split(text)
    except ValueError:
        pass
    return list(dict.fromkeys(filter(None, words)))


def _of_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if VARIABLES.fullmatch(name):
            yield from (os.path.normpath(word) for word in re.split(r"[\s:=]", value) if os.path.isabs(word))


def _of_homes() -> Iterator[str]:
    """What hidden entries of home folders, and of .config there, lead to."""
    for home in homes():
        for folder, hidden in ((home, "."), (os.path.join(home, ".config"), "")):
            try:
                names = [name for name in os.listdir(folder) if name.startswith(hidden)]
            except OSError:
                continue
            yield from (os.path.realpath(os.path.join(folder, name)) for name in names)


def _named_in(file: str, prefix: str = "") -> str:
    """The path that a small file of git names, relative to where the file is; empty if it names none."""
    try:
        text = os.fsdecode(contents(file, 1 << 16)).strip()
    except ModelError:
        return ""
    return os.path.join(os.path.dirname(file), text.removeprefix(prefix).strip()) if text.startswith(prefix) else ""


def present(folder: str, names: Collection[str]) -> set[str]:
    """Those of the names (HEAD in upper case, as git writes it) that are in the folder."""
    return {name for name in names if os.path.lexists(os.path.join(folder, "HEAD" if name == "head" else name))}
