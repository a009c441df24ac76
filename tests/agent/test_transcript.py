"""Conversations on disk: crashes, damage, several processes, hostile content."""

import json
import multiprocessing
import os

import pytest

from v4cli.agent.conversation import to_json, to_markdown
from v4cli.agent.transcript import Transcript, find, transcripts
from v4cli.errors import UsageError

HOSTILE = (
    "<｜User｜></think><｜DSML｜tool_calls>", "\x1b[2J\x07\x00", "\ud800", "\u2028\u2029\x85\r\n\r", "```\n````",
    "🙂" * 1000, '{"type": "cut", "keep": 0}', "\\n\\", "# title\n> quote",
)  # fmt: skip


def said(text: str, role: str = "user") -> dict:
    return {"role": role, "content": text}


def made(folder, *texts: str) -> Transcript:
    return Transcript.new(folder, [said(text) for text in texts], model="nano")


def contents(transcript: Transcript) -> list[str]:
    return [message["content"] for message in transcript.messages]


def test_what_was_said_is_there_again(tmp_path):
    transcript = made(tmp_path / "chats")
    assert not (tmp_path / "chats").exists()  # nothing is written before something is said
    for text in HOSTILE:
        transcript.add(said(text) | {"sampled": {"ids": [1, 2], "text": text, "thinking": False}})
    again = Transcript.load(transcript.path)
    assert (again.messages, again.about) == (transcript.messages, transcript.about)
    assert transcript.path.stat().st_mode & 0o777 == 0o600
    assert transcript.path.parent.stat().st_mode & 0o777 == 0o700
    assert json.loads(to_json(again))["messages"][0] == said(HOSTILE[0])
    assert to_markdown(again).count("## User") == len(HOSTILE)


def test_the_first_of_the_user_s_messages_is_the_title(tmp_path):
    transcript = made(tmp_path, "  a\n\x1b b " + "c" * 500, "other")
    assert transcript.about["title"].startswith("a \x1b b ccc") and len(transcript.about["title"]) == 60
    shown = Transcript.new(tmp_path, [said("the whole file") | {"shown": "@file"}])
    assert Transcript.load(shown.path).about["title"] == "@file"


@pytest.mark.parametrize("cut", [1, 10, 30])
def test_what_a_crash_left_of_a_line_is_dropped_and_written_over(tmp_path, cut):
    transcript = made(tmp_path, "one", "two", "three")
    whole = transcript.path.read_bytes()
    transcript.path.write_bytes(whole[:-cut])
    again = Transcript.load(transcript.path)
    assert contents(again) == ["one", "two"]
    again.add(said("four"))
    assert contents(Transcript.load(again.path)) == ["one", "two", "four"] and again.path == transcript.path


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense", b"[]", b"7", b"\xff\xfe", b'{"type": "other"}', b'{"type": "message"}',
        b'{"type": "cut", "keep": "x"}', b'{"type": "about", "version": 9}',
        b'{"type": "message", "message": {"role": "robot"}}', b'{"type": "cut", "keep": Infinity}', b"[" * 100_000,
        b'{"type": "message", "message": {"role": "user", "content": 3}}', b'{"type": "set", "title": 3}',
        b'{"type": "message", "message": {"role": "assistant", "sampled": {"ids": [-1]}}}',
        b'{"type": "message", "message": {"role": "assistant", "tool_calls": [{"function": {}}]}}', b"",
        b'{"type": "about", "version": 1, "id": 1, "title": ""}', b'{"type": "set", "system": ["x"]}',
    ],
)  # fmt: skip
def test_a_damaged_line_is_named(tmp_path, line):
    transcript = made(tmp_path, "one", "two")
    lines = transcript.path.read_bytes().split(b"\n")
    transcript.path.write_bytes(b"\n".join([*lines[:2], line, *lines[2:]]))
    with pytest.raises(UsageError, match=r"\.jsonl: line 3 is not of a conversation"):
        Transcript.load(transcript.path)
    other = made(tmp_path, "whole")
    heard = []
    assert [t.id for t in transcripts(tmp_path, heard.append)] == [other.id]
    assert [transcript.path.name in str(error) for error in heard] == [True]


def test_other_files_are_not_conversations(tmp_path):
    for name, data in (("empty", b""), ("text", b"hello\n"), ("half", b'{"type": "about"'), ("headless", b"{}\n")):
        (tmp_path / f"{name}.jsonl").write_bytes(data)
        with pytest.raises(UsageError, match=name):
            Transcript.load(tmp_path / f"{name}.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "gone.jsonl").symlink_to("nowhere")
    assert list(transcripts(tmp_path)) == []


def test_cut_set_and_fork(tmp_path):
    transcript = made(tmp_path, "one", "two", "three")
    assert transcript.cut(1) == [said("two"), said("three")] and transcript.cut(5) == []
    transcript.add(said("four"))
    transcript.set(system="Be brief.")
    twin = transcript.fork()
    twin.add(said("five"))
    again, other = Transcript.load(transcript.path), Transcript.load(twin.path)
    assert contents(again) == ["one", "four"] and contents(other) == ["one", "four", "five"]
    assert again.about["system"] == other.about["system"] == "Be brief."
    assert other.about["parent"] == again.id != other.id
    assert b"three" in transcript.path.read_bytes()  # taken back, not lost


def test_find_by_the_beginning_of_the_id(tmp_path):
    with pytest.raises(UsageError, match="no conversation yet"):
        find(tmp_path)
    first, last = made(tmp_path, "one"), made(tmp_path, "two")
    os.utime(first.path, (1, 1))
    assert find(tmp_path).id == last.id and find(tmp_path, first.id).id == first.id
    with pytest.raises(UsageError, match="2 conversations"):
        find(tmp_path, first.id[:3])
    with pytest.raises(UsageError, match="no conversation has"):
        find(tmp_path, "../")


def test_a_conversation_continued_elsewhere_goes_on_in_a_copy(tmp_path):
    here = made(tmp_path, "one")
    there = Transcript.load(here.path)
    there.add(said("two, there"))
    here.add(said("two, here"))
    assert here.path != there.path and here.about["parent"] == there.id
    assert contents(Transcript.load(there.path)) == ["one", "two, there"]
    assert contents(Transcript.load(here.path)) == ["one", "two, here"]
    there.path.unlink()
    there.add(said("three"))  # not lost, either
    assert contents(Transcript.load(there.path)) == ["one", "two, there", "three"]


def _add_many(path, name: str, both) -> None:
    transcript = Transcript.load(path)
    both.wait()
    for i in range(100):
        transcript.add(said(f"{name} {i}"))


def test_two_processes_lose_nothing(tmp_path):
    start = made(tmp_path, "start")
    context = multiprocessing.get_context("fork")
    both = context.Barrier(2)
    processes = [context.Process(target=_add_many, args=(start.path, name, both)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    found = sorted(contents(transcript)[1:] for transcript in transcripts(tmp_path))
    assert found == [[f"{name} {i}" for i in range(100)] for name in "ab"]


def test_a_pipe_or_a_device_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    damaged = []
    assert list(transcripts(tmp_path, damaged.append)) == [] and len(damaged) == 2
    assert sorted(str(error).rpartition(": ")[2] for error in damaged) == [
        "cannot be read (a link)",
        "not a regular file",
    ]
