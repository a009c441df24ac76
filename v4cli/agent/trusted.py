"""What of a workspace the user's other programs run or obey without being asked to, and a model must therefore not
write: in the sandbox it is read-only, or taken away if it is new (`guard`), and `write_file` refuses it.

The line: what acts when users change into a folder, open an editor, type a command of git, start a shell or start v4.
Not behind it: what they run by name (a Makefile, tests, scripts), and what hooks of their own call.
"""

import os
import re
from collections.abc import Collection, Iterator

from v4cli import settings

GIT = "git"
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
    return os.path.basename(path).lower() in ENVIRONMENT_NAMES | PACKAGES or not ENVIRONMENT_MARKS.isdisjoint(names)


def repository_around(folder: str) -> str:
    """The repository whose own folder this is or lies in, where whatever is written may be run; empty if none is."""
    for path in ancestors(folder):
        if obeyed_by(os.path.basename(path)) == GIT or is_repository(present(path, REPOSITORY)):
            return path
    return ""


def within(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies below it."""
    path, folder = os.path.normcase(path), os.path.normcase(folder)
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def ancestors(folder: str) -> Iterator[str]:
    """The folder, the one above it, and so on."""
    yield folder
    while (above := os.path.dirname(folder)) != folder:
        folder = above
        yield folder


def present(folder: str, names: Collection[str]) -> set[str]:
    """Those of the names (HEAD in upper case, as git writes it) that are in the folder."""
    return {name for name in names if os.path.lexists(os.path.join(folder, "HEAD" if name == "head" else name))}
