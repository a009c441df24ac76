"""An official checkpoint, the store of it, and a loopback hub that has it."""

import pytest
from hub_server import quick_client, serving
from pulling import REPO, Listener, by_block
from tiny import STORE_LIKE, random_checkpoint

from v4cli.pull.hub import FolderSource, HubSource
from v4cli.pull.pull import pull


@pytest.fixture(scope="session")
def official(tmp_path_factory):
    """An official checkpoint, one block a shard, with a tokenizer."""
    path = by_block(random_checkpoint(tmp_path_factory.mktemp("official"), STORE_LIKE, shards=1))
    with (path / "tokenizer.json").open("a") as file:
        file.write(" " * 30_000)  # large enough for LFS, as the real ones are
    return path


@pytest.fixture(scope="session")
def reference(official, tmp_path_factory):
    """The store of it, made from the folder in one go."""
    dest = tmp_path_factory.mktemp("reference") / "m"
    pull(FolderSource(official), dest, reporter=Listener())
    return dest


@pytest.fixture(scope="session")
def serving_hub(official):
    with serving() as running:
        running.add(REPO, official)
        yield running


@pytest.fixture
def hub(serving_hub):
    """The hub; no fault is left over for the next test."""
    yield serving_hub
    serving_hub.faults.clear()
    serving_hub.asked.clear()
    serving_hub.looked.clear()
    serving_hub.rate, serving_hub.repos[REPO].token = float("inf"), None


@pytest.fixture
def client(hub, tmp_path, monkeypatch):
    """Makes sources of the hub, through the real client with an empty cache and short waits."""
    quick_client(monkeypatch, tmp_path)
    return lambda: HubSource(REPO, endpoint=hub.url)
