"""What holds conversations is for its owner only, and never written through a link that someone else has made."""

import os
from types import SimpleNamespace

import numpy as np
import pytest

from v4cli.agent.transcript import Transcript
from v4cli.cli import bench_output
from v4cli.cli.plumbing import score_tokens
from v4cli.errors import UsageError, V4Error
from v4cli.repl.input import History
from v4cli.repl.pastes import Pastes


def mode(path):
    return path.stat().st_mode & 0o777


@pytest.fixture
def victim(tmp_path):
    path = tmp_path / "victim"
    path.write_text("mine\n")
    path.chmod(0o644)
    return path


def test_conversations(tmp_path, victim):
    made = Transcript.new(tmp_path / "chats")
    made.path.parent.mkdir()
    made.path.symlink_to(victim)
    made.add({"role": "user", "content": "hello"})
    assert "cannot be written" in made.trouble
    assert victim.read_text() == "mine\n" and mode(victim) == 0o644
    other = Transcript.new(tmp_path / "chats")
    other.add({"role": "user", "content": "hello"})
    other.path.chmod(0o644)  # as a copy might have it
    other.add({"role": "user", "content": "again"})
    assert mode(other.path) == 0o600 and mode(other.path.parent) in (0o700, 0o755)


def test_logits_of_a_text(tmp_path, victim):
    (tmp_path / "ids").write_text("1 2 3")

    def score(name: str) -> None:
        score_tokens("nano", tmp_path / "ids", None, tmp_path / name, None, "cpu", 512)

    (tmp_path / "there.npz").touch(0o644)
    for name in ("there.npz", "new.npz"):
        score(name)
        assert mode(tmp_path / name) == 0o600 and np.load(tmp_path / name)["ids"].tolist() == [1, 2, 3]
    (tmp_path / "link.npz").symlink_to(victim)
    os.mkfifo(tmp_path / "pipe.npz")
    for name in ("link.npz", "pipe.npz"):
        with pytest.raises(UsageError, match=name):
            score(name)
    assert victim.read_text() == "mine\n" and mode(victim) == 0o644


def test_a_plot_is_not_written_through_a_link(tmp_path, victim, monkeypatch):
    (tmp_path / "plot.png").symlink_to(victim)
    figure = SimpleNamespace(savefig=lambda picture, **_: picture.write(b"png"))
    monkeypatch.setattr(bench_output, "draw", lambda *_: figure)
    with pytest.raises(UsageError, match="a link"):
        bench_output.save_plot({}, [], tmp_path / "plot.png")
    assert victim.read_text() == "mine\n"


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_conversation_is_not_read(tmp_path, kind):
    path = tmp_path / "20260101-000000-abcdef.jsonl"
    if kind == "link":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(UsageError, match="abcdef"):
        Transcript.load(path)


def test_history(tmp_path, victim):
    path = tmp_path / "state" / "history"
    History(path, Pastes()).store_string("hello")
    path.chmod(0o644)
    History(path, Pastes())
    assert mode(path) == 0o600
    path.unlink()
    path.symlink_to(victim)
    with pytest.raises(V4Error):
        History(path, Pastes())
    assert victim.read_text() == "mine\n"
