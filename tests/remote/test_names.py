"""What a server's model is called here: whose tokenizer it is."""

import shutil

import pytest
from remote.exchanges import Scripted, models

from v4cli import paths, settings
from v4cli.cli import remote
from v4cli.errors import ModelError
from v4cli.options import Loading


@pytest.fixture
def named(monkeypatch, tmp_path):
    """`named(served, model)`: what `--model` means where a server has the model `served`."""
    monkeypatch.setenv("V4_HOME", str(tmp_path))
    monkeypatch.delenv("V4_ENGINE", raising=False)

    def told(served: str, model: str | None = None) -> str:
        its = Scripted(models("vllm", served))
        return remote.model_of(model or settings.default_model(), Loading(engine=its.url))

    return told


def small_files(name: str) -> None:
    folder = paths.models_dir() / name
    folder.mkdir(parents=True)
    for file in ("config.json", "tokenizer.json", "generation_config.json"):
        shutil.copy(paths.NANO / file, folder)


def test_the_server_s_own_name_is_found_here(named):
    assert named("nano") == "nano"
    small_files("DeepSeek-V4-Flash")
    assert named("deepseek-ai/DeepSeek-V4-Flash") == "DeepSeek-V4-Flash"


def test_a_model_that_is_named_stays(named):
    assert named("deepseek-ai/DeepSeek-V4-Flash", "mine") == "mine"


def test_a_tokenizer_that_is_not_here_is_asked_for(named):
    with pytest.raises(ModelError, match="serves deepseek-ai/DeepSeek-V4-Pro, whose tokenizer is not here") as error:
        named("deepseek-ai/DeepSeek-V4-Pro")
    assert "--model DIR" in error.value.hint
