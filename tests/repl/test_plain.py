"""The REPL line by line: what its writer says of things that run."""

import pytest

from v4cli.agent.loop import CallEnd, Done
from v4cli.agent.tools import Call
from v4cli.chat.parser import ToolCallEnd
from v4cli.repl import items
from v4cli.repl.plain import Writer


@pytest.mark.parametrize(
    "result, told",
    [
        ("one\ntwo\n", "one\ntwo\n"),
        ("one\ntwo\n[exit status 2]", "one\ntwo\n[exit status 2]\n"),
        ("another result", "one\ntwo\nanother result\n"),
    ],
)
def test_output_that_has_been_printed_is_not_told_again(capsys, result, told):
    writer = Writer()
    writer.take(items.Output("one\nt"))
    writer.take(items.Output("wo\n"))
    writer.take(CallEnd(Call("1", "run_shell", {}), result, True, 0.0))
    assert capsys.readouterr().err == told
    writer.take(items.Output("one"))
    writer.take(items.Note("one\n(exit 1)"))
    writer.take(items.Note("one"))
    assert capsys.readouterr().err == "one\n(exit 1)\none\n"


def test_a_long_result_is_folded(capsys):
    Writer().take(CallEnd(Call("1", "list_folder", {}), "\n".join("abcde"), True, 0.0))
    assert capsys.readouterr().err == "a\nb\nc\nd\n… 1 more line\n"


@pytest.mark.parametrize("number, said", [(0, "(interrupted)\n"), (2, "")])
def test_where_the_command_ends_by_a_signal_only_that_is_said(capsys, monkeypatch, number, said):
    monkeypatch.setattr("v4cli.repl.plain.told", lambda: number)
    Writer().take(Done("interrupted"))
    assert capsys.readouterr().err == said


def test_what_is_not_whole_says_so(capsys):
    writer = Writer()
    writer.take(ToolCallEnd(0, "clock", '{"zone": "U', "it was cut off"))
    writer.take(ToolCallEnd(1, "clock", '{"zone": "U"}'))
    writer.take(Done("stop", empty=True))
    assert (
        capsys.readouterr().err
        == "[clock U] (not whole: it was cut off)\n[clock U]\n(the model ended without an answer)\n"
    )
