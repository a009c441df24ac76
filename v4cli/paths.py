"""Where v4cli keeps things. `V4_HOME` moves everything under one folder."""

import os
from collections.abc import Callable
from pathlib import Path

import platformdirs

from v4cli.errors import UsageError

NANO = Path(__file__).parent / "nano" / "checkpoint"
NOWHERE = Path("/dev/null")  # nothing is there, and nobody can make something there


def config_file() -> Path:
    """The user's settings; it need not exist."""
    return (_home() or _of_user(platformdirs.user_config_dir)) / "config.toml"


def templates_dir() -> Path:
    """Folder of the user's templates of prompts; it need not exist."""
    return config_file().parent / "templates"


def state_dir() -> Path:
    """Folder of history and other state; it need not exist yet."""
    home = _home()
    return home / "state" if home else _of_user(platformdirs.user_state_dir)


def figures_file() -> Path:
    """What was measured on this machine (plan/measured.py); it need not exist yet."""
    return state_dir() / "figures.json"


def models_dir() -> Path:
    """Folder of pulled models, one folder each; it need not exist yet."""
    return (_home() or _of_user(platformdirs.user_data_dir)) / "models"


def chats_dir() -> Path:
    """Folder of conversations, one file each; it need not exist yet."""
    return (_home() or _of_user(platformdirs.user_data_dir)) / "chats"


def _cache_dir() -> Path:
    home = _home()
    return home / "cache" if home else _of_user(platformdirs.user_cache_dir)


def _home() -> Path | None:
    """V4_HOME, if it is set. UsageError."""
    told = os.environ.get("V4_HOME", "").strip()
    if told.startswith("~") and str(expanded(told)).startswith("~"):
        raise UsageError(f"V4_HOME={told}: there is no such home folder", "V4_HOME=/a/whole/path")
    return (here() / expanded(told)) if told else None


def _of_user(folder: Callable[[str], str]) -> Path:
    """One of the user's folders. Who has no home folder has them nowhere: what is kept there cannot be written."""
    try:
        path = Path(folder("v4cli"))
    except RuntimeError:  # so say some versions of platformdirs, others give a path that begins with ~
        return NOWHERE / "v4cli"
    return path if path.is_absolute() else NOWHERE / "v4cli"


def expanded(path: str) -> Path:
    """The path with the home folder for ~, as far as there is one."""
    return Path(os.path.expanduser(path))


def here() -> Path:
    """The current folder. UsageError if it has been removed."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise UsageError("the current folder has been removed", "cd to another one") from None


def prefixes_dir() -> Path:
    """Folder of computed prefixes; it need not exist yet."""
    return _cache_dir() / "prefixes"


def evals_dir() -> Path:
    """Folder of what v4 eval has measured and of reference models' logits; it need not exist yet."""
    return (_home() or _of_user(platformdirs.user_data_dir)) / "evals"


def use_dir() -> Path:
    """Folder of what was learned about the use of experts, a file per model; it need not exist yet."""
    return _cache_dir() / "experts"
