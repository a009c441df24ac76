"""`--engine URL`: a model that a server has. What it is called here, and conversations with it."""

import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from v4cli import paths, settings
from v4cli.chat.turn import Chat
from v4cli.cli import output
from v4cli.errors import ModelError
from v4cli.options import Loading
from v4cli.store import library

if TYPE_CHECKING:
    from v4cli.remote.engine import Served

KEY = "V4_API_KEY"


def model_of(model: str, loading: Loading) -> str:
    """What `--model` means: with `--engine`, unless a model is named, the one that the server has. NetworkError,
    UsageError, ModelError."""
    if model != settings.default_model():
        return model
    served = _served(loading)
    name = served.names[0]
    for known in (model, name, os.path.basename(name)):
        if known in (name, os.path.basename(name)) and _is_here(known):
            return known
    for entry in library.entries(paths.models_dir()):
        if entry.source.partition("@")[0] == name:
            return entry.name
    raise ModelError(
        f"{served.client.url} serves {name}, whose tokenizer is not here",
        "--model DIR, a folder with its config.json, tokenizer.json and generation_config.json",
    )


def open_chat(model: str, loading: Loading) -> Chat:
    """A conversation with a model of the server; its tokenizer and config are those of the model of this name here."""
    from v4cli.remote.engine import RemoteEngine

    with settings.blamed("model", model):
        folder = library.model_folder(model)
    for its in fields(Loading):
        if its.name != "engine" and (value := getattr(loading, its.name)) != its.default:
            said = settings.said_by(its.name, value)
            output.note(f"v4: {said} has no effect, the model is at {loading.engine}", dim=True)
    return Chat.elsewhere(RemoteEngine(_served(loading), model, folder))


def _served(loading: Loading) -> "Served":
    from v4cli.remote.engine import Served

    assert loading.engine
    with settings.blamed("engine", loading.engine):
        return Served(loading.engine, os.environ.get(KEY, ""))


def _is_here(name: str) -> bool:
    folder = paths.NANO if name == "nano" else library.named_folder(name) or Path(name)
    return (folder / "tokenizer.json").is_file()
