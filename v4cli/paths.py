"""Where v4cli keeps things. `V4_HOME` moves everything under one folder."""

import os
from pathlib import Path

import platformdirs

from v4cli.errors import ModelError

NANO = Path(__file__).parent / "nano" / "checkpoint"


def state_dir() -> Path:
    """History and other state, created private to the user."""
    home = os.environ.get("V4_HOME")
    path = Path(home) / "state" if home else Path(platformdirs.user_state_dir("v4cli"))
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def model_folder(model: str) -> Path:
    """Folder of a model given by name (nano) or by path. ModelError if there is none."""
    if model == "nano":
        return NANO
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    raise ModelError(
        f"model {model!r} not found", "give nano or a folder with an official checkpoint; v4 ls lists models"
    )
