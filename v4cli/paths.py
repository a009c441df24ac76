"""Where v4cli keeps things. `V4_HOME` moves everything under one folder."""

import os
from pathlib import Path

import platformdirs

from v4cli.errors import ModelError

NANO = Path(__file__).parent / "nano" / "checkpoint"


def config_file() -> Path:
    """The user's settings; it need not exist."""
    home = os.environ.get("V4_HOME")
    return (Path(home) if home else Path(platformdirs.user_config_dir("v4cli"))) / "config.toml"


def state_dir() -> Path:
    """Folder of history and other state; it need not exist yet."""
    home = os.environ.get("V4_HOME")
    return Path(home) / "state" if home else Path(platformdirs.user_state_dir("v4cli"))


def models_dir() -> Path:
    """Folder of pulled models, one folder each; it need not exist yet."""
    home = os.environ.get("V4_HOME")
    return (Path(home) if home else Path(platformdirs.user_data_dir("v4cli"))) / "models"


def chats_dir() -> Path:
    """Folder of conversations, one file each; it need not exist yet."""
    home = os.environ.get("V4_HOME")
    return (Path(home) if home else Path(platformdirs.user_data_dir("v4cli"))) / "chats"


def _cache_dir() -> Path:
    home = os.environ.get("V4_HOME")
    return Path(home) / "cache" if home else Path(platformdirs.user_cache_dir("v4cli"))


def prefixes_dir() -> Path:
    """Folder of computed prefixes; it need not exist yet."""
    return _cache_dir() / "prefixes"


def use_dir() -> Path:
    """Folder of what was learned about the use of experts, a file per model; it need not exist yet."""
    return _cache_dir() / "experts"


def model_folder(model: str) -> Path:
    """Folder of a model: nano, a name under models_dir(), or a path (./NAME where both exist).

    ModelError if there is none.
    """
    if model == "nano":
        return NANO
    for path in (named_folder(model), os.path.expanduser(model)):
        if path is not None and os.path.isdir(path):
            from v4cli.weights.kinds import resolved

            return resolved(Path(path))
    from v4cli.weights.known import MODELS  # 8 ms, which the REPL has no time for

    if os.path.exists(os.path.expanduser(model)):
        from v4cli.weights.kinds import not_a_folder

        raise not_a_folder(Path(model).expanduser())
    hint = f"v4 pull {model}" if model in MODELS else "v4 ls lists the models that are here; v4 pull brings others"
    raise ModelError(f"model {model!r} not found", hint)


def named_folder(name: str) -> Path | None:
    """Where a pulled model of this name is or would be; None if it cannot be a name: a path, hidden, nano."""
    if name in ("", "nano") or name.startswith(".") or Path(name).name != name:
        return None
    return models_dir() / name
