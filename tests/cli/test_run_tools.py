"""`v4 run --tools`: the agent loop for scripts."""

import io
import json
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
from test_cli import V4

from v4cli.agent import sandbox
from v4cli.cli import output
from v4cli.cli.run_output import folded
from v4cli.cli.start import main


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    """run(argument, ...) is `v4 run --temp 0` in this process, in a pipe."""

    def made(*args) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["v4", "run", "--temp", "0", *args])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        told = said.err.removeprefix("v4: loading nano …\n")  # where that takes long
        return SimpleNamespace(returncode=int(ended.value.code or 0), stdout=said.out, stderr=told)

    return made


def events(done) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_call_is_run_and_only_the_answer_is_on_stdout(run):
    done = run("--tools", "nano", "What is 17*23?")
    assert done.returncode == 0
    assert done.stdout == "17*23 = 391\n"
    assert done.stderr == '[calculator {"expression": "17*23"}]\n  391\n'


def test_json_has_every_message_and_adds_up_the_turns(run):
    result = json.loads(run("--tools", "calculator", "--json", "What is 17*23?").stdout)
    assert [message["role"] for message in result["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert result["text"] == result["messages"][-1]["content"] == "17*23 = 391"
    assert result["messages"][2]["content"] == "391" and "sampled" not in str(result["messages"])
    assert result["finish_reason"] == "stop" and result["tool_calls"] == []
    assert result["usage"]["completion_tokens"] > 40  # of both turns
    assert result["usage"]["cached_tokens"] > result["usage"]["prompt_tokens"] // 3


def test_stream_json_tells_each_step_in_order(run, folder):
    (folder / "a.txt").write_text("hello world")
    done = run("--tools", "nano", "--think", "--output-format", "stream-json", "read a.txt")
    kinds = [event["type"] for event in events(done)]
    steps = [kind for i, kind in enumerate(kinds) if i == 0 or kinds[i - 1] != kind]
    turn = ["thinking", "message", "end"]
    assert steps == ["init", "thinking", "end", "tool_use", "tool_result", *turn, "result"]
    use, result = (next(e for e in events(done) if e["type"] == kind) for kind in ("tool_use", "tool_result"))
    assert use == {"type": "tool_use", "id": "call_0", "name": "read_file", "arguments": {"path": "a.txt"}}
    assert (result["id"], result["name"], result["ok"]) == ("call_0", "read_file", True)
    assert "hello world" in result["text"]
    said = "".join(event["text"] for event in events(done) if event["type"] == "message")
    assert said == events(done)[-1]["text"] and "hello world" in said


def test_what_changes_things_is_refused_with_the_flag_that_allows_it(run, folder):
    done = run("--tools", "nano", "--output-format", "stream-json", "run the command mkdir made")
    result = next(event for event in events(done) if event["type"] == "tool_result")
    assert not result["ok"] and "not run" in result["text"]
    assert "--approve" in result["text"] or sandbox.missing()
    assert not (folder / "made").exists() and done.returncode == 0


@pytest.mark.skipif(sandbox.missing() != "", reason=sandbox.missing())
@pytest.mark.parametrize(("mode", "made"), [("all", True), ("plan", False), ("edits", False)])
def test_approve_says_what_runs(run, folder, mode, made):
    done = run("--tools", "nano", "--approve", mode, "-n", "50", "run the command mkdir made")
    assert done.returncode == 0 and (folder / "made").is_dir() == made


@pytest.mark.skipif(sandbox.missing() != "", reason=sandbox.missing())
@pytest.mark.parametrize("flags", [[], ["--network"]])
def test_the_network_is_there_if_allowed(run, folder, flags):
    others = {name for _, name in socket.if_nameindex()} - {"lo"}
    if not others:
        pytest.skip("this machine has no network")
    done = run("--tools", "nano", "--approve", "all", *flags, "-n", "60", "--json", "run the command cat /proc/net/dev")
    [result] = [message["content"] for message in json.loads(done.stdout)["messages"] if message["role"] == "tool"]
    assert "lo:" in result and any(name in result for name in others) == bool(flags)


def test_the_limit_of_turns_is_exit_6(run):
    done = run("--tools", "nano", "--max-rounds", "1", "--json", "What is 17*23?")
    assert done.returncode == 6 and "--max-rounds" in done.stderr
    result = json.loads(done.stdout)
    assert result["finish_reason"] == "rounds" and result["messages"][-1] == {
        "role": "tool", "tool_call_id": "call_0", "content": "391",
    }  # fmt: skip


def test_calls_of_tools_in_a_file_are_the_caller_s(run, folder):
    from v4cli.nano.tools import TOOLS

    (folder / "tools.json").write_text(json.dumps(TOOLS))
    done = run("--tools", "tools.json", "--json", "What is 17*23?")
    result = json.loads(done.stdout)
    assert result["finish_reason"] == "tool_calls" and len(result["messages"]) == 2
    assert json.loads(result["tool_calls"][0]["function"]["arguments"]) == {"expression": "17*23"}
    done = run("--tools", "tools.json", "What is 17*23?")
    assert done.stdout == "" and done.stderr == '[calculator {"expression": "17*23"}]\n'
    (use,) = [e for e in events(run("--tools", "tools.json", "--output-format", "stream-json", "What is 17*23?"))
              if e["type"] == "tool_use"]  # fmt: skip
    assert use["id"] == "call_0" and use["arguments"] == {"expression": "17*23"}


def schemas_of(folder, **parameters) -> str:
    """A file of tools by their parameters."""
    tools = [{"type": "function", "function": {"name": n, "parameters": p}} for n, p in parameters.items()]
    (folder / "tools.json").write_text(json.dumps(tools))
    return "tools.json"


def test_constrained_calls_may_have_what_is_optional(run, folder):
    optional = {"type": "object", "properties": {"expression": {"type": "string"}}}
    done = run("--json", "--constrain", "--tools", schemas_of(folder, calculator=optional), "What is 17*23?")
    [call] = json.loads(done.stdout)["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"expression": "17*23"} and done.stderr == ""


def test_a_tool_that_cannot_be_constrained_is_named(run, folder):
    optional, many = (
        {"properties": {"expression": {"type": "string"}}},
        {"properties": {f"p{i}": {} for i in range(65)}},
    )
    tools = schemas_of(folder, calculator=optional, many=many)
    done = run("--json", "--constrain", "--tools", tools, "What is 17*23?")
    [call] = json.loads(done.stdout)["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"expression": "17*23"}
    assert done.stderr.count("many") == 1 and "calculator" not in done.stderr


@pytest.mark.parametrize("bad", [{"required": True}, {"properties": []}, {"properties": {"a": {"type": None}}}])
def test_a_schema_that_is_none_is_a_mistake_named_before_anything_is_loaded(run, folder, bad):
    tools = schemas_of(folder, hammer=bad)
    for flags in ([], ["--constrain"]):
        done = run("--model", "nowhere", "--tools", tools, *flags, "hi")
        assert done.returncode == 2 and done.stdout == ""
        assert "tools.json[0]" in done.stderr and "hammer" in done.stderr and next(iter(bad)) in done.stderr


CUT_OFF = "it was cut off before it was complete"


@pytest.fixture
def schemas(folder):
    """A file of the schemas that nano was trained on."""
    from v4cli.nano.tools import TOOLS

    (folder / "tools.json").write_text(json.dumps(TOOLS))
    return "tools.json"


def test_a_call_that_is_cut_off_says_so_in_every_format(run, schemas):
    args = ["--tools", schemas, "What is 17*23?", "-n", "25"]
    told = f"v4: cut off at the limit of 25 tokens (--max-tokens); a call is not whole (calculator): {CUT_OFF}\n"
    done = run(*args, "--json")
    result, partial = json.loads(done.stdout), '{"expression": "1'
    assert done.returncode == 0 and done.stderr == told and result["finish_reason"] == "length"
    (call,) = result["tool_calls"]
    assert call["function"] == {"name": "calculator", "arguments": partial} and call["fault"] == CUT_OFF
    assert result["messages"][-1]["tool_calls"][0]["fault"] == CUT_OFF
    done = run(*args, "--output-format", "stream-json")
    use, end, last = events(done)[-3:]
    assert (use["type"], use["arguments"], use["fault"]) == ("tool_use", partial, CUT_OFF) and done.stderr == told
    assert end == {"type": "end", "finish_reason": "length"} and last["tool_calls"] == result["tool_calls"]
    done = run(*args)
    assert done.stdout == "" and done.stderr == f"[calculator {partial}] (not whole: {CUT_OFF})\n{told}"


def test_a_call_that_is_cut_off_is_told_of_though_an_answer_follows(run):
    done = run("--tools", "nano", "What is 17*23?", "-n", "30", "--json")
    result = json.loads(done.stdout)
    assert result["text"] and result["messages"][1]["tool_calls"][0]["fault"] == CUT_OFF
    assert f"a call is not whole (calculator): {CUT_OFF}\n" in done.stderr and done.stderr.count("\n") == 1


def test_an_interruption_is_not_told_twice():
    from v4cli.cli.run_output import shortfall

    said = {"role": "assistant", "content": "", "fault": CUT_OFF, "tool_block": "<"}
    assert shortfall([], "interrupted", "") == ""
    assert shortfall([said], "interrupted", "") == f"a call is not whole (?): {CUT_OFF}"


def test_wherever_a_call_is_cut_off_its_markup_is_no_answer(run, schemas):
    for n in range(4, 48, 6):
        result = json.loads(run("--tools", schemas, "What is 17*23?", "-n", str(n), "--json").stdout)
        faults = [call.get("fault") for call in result["tool_calls"]] or [result["fault"]]
        assert result["text"] == "" and result["finish_reason"] in ("length", "tool_calls")
        assert faults == ([None] if n > 39 else [CUT_OFF]), n
    assert result["finish_reason"] == "tool_calls"


def test_a_call_that_is_not_run_is_told_as_it_came(run):
    done = run("--tools", "nano", "--output-format", "stream-json", "What is 17*23?", "-n", "25")
    use, result = (next(e for e in events(done) if e["type"] == kind) for kind in ("tool_use", "tool_result"))
    assert use == {"type": "tool_use", "id": "call_0", "name": "calculator", "arguments": '{"expression": "1',
                   "fault": CUT_OFF}  # fmt: skip
    assert result["text"] == f"error: this call was not run: {CUT_OFF}" and not result["ok"]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["-n", "5"], "cut off at the limit of 5 tokens (--max-tokens)"),
        (["-n", "5", "--think", "--hide-thinking"],
         "cut off at the limit of 5 tokens (--max-tokens); it was still thinking, there is no answer"),
        (["--stop", "I"], "the model gave no answer"),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_whole_says_so_on_one_line(run, args, told):
    for style in ([], ["--json"], ["--tools", "nano"]):
        done = run(*args, *style, "Hello, who are you?")
        assert done.stderr == f"v4: {told}\n" and done.returncode == 0, style


def test_a_whole_answer_says_nothing(run):
    assert run("Hello, who are you?").stderr == ""


def test_parse_tells_what_is_wrong(folder, monkeypatch, capsys):
    def parsed(text: str) -> dict:
        (folder / "said").write_text(text)
        monkeypatch.setattr(sys, "argv", ["v4", "parse", "--in", "said"])
        with pytest.raises(SystemExit):
            main()
        return json.loads(capsys.readouterr().out)

    cut = '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="a" string="true">x'
    call = {"index": 0, "type": "function", "function": {"name": "f", "arguments": '{"a": "x'}, "fault": CUT_OFF}
    assert parsed(cut) == {"tool_calls": [call], "finish": "tool_calls"}
    whole = parsed(f"{cut}</｜DSML｜parameter>\n</｜DSML｜invoke>")
    assert whole["tool_calls"][0]["function"]["arguments"] == '{"a": "x"}' and "fault" not in whole["tool_calls"][0]
    unread = "\n<｜DSML｜tool_calls>\nf x\n</｜DSML｜tool_calls>"
    assert parsed(f"So.{unread}") == {
        "content": "So.", "finish": "stop", "fault": "the block holds no call that can be read", "tool_block": unread,
    }  # fmt: skip


def asked(done) -> str:
    """What the model was asked."""
    return json.loads(done.stdout)["messages"][-2]["content"]


def test_several_files_are_read_in_order(run, folder, monkeypatch):
    for name in "abc":
        (folder / name).write_text(f"{name} text\n")
    blocks = [f"{name} (7 bytes):\n```\n{name} text\n```" for name in "bac"]
    assert asked(run("-n", "1", "--json", "-f", "b", "--file", "a", "-f", "c")) == "\n\n".join(blocks)


BLOCK, STDIN = "a (6 bytes):\n```\na text\n```", "stdin (5 bytes):\n```\npiped\n```"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["-f", "a", "-f", "-"], f"{BLOCK}\n\n{STDIN}"), (["-f", "-", "-f", "a"], f"{STDIN}\n\n{BLOCK}"),
        (["-f", "a"], f"piped\n\n{BLOCK}"), (["prompt"], "piped\n\nprompt"),
    ],
)  # fmt: skip
def test_stdin_stands_where_it_is_named(folder, args, said):
    (folder / "a").write_text("a text")
    command = [*V4, "run", "-n", "1", "--json", *args]
    assert asked(subprocess.run(command, input="piped", capture_output=True, text=True)) == said


def test_schemas_on_stdin_are_no_prompt(folder, schemas):
    command = [*V4, "run", "-n", "1", "--json", "--tools", "-", "Hello"]
    done = subprocess.run(command, input=(folder / schemas).read_text(), capture_output=True, text=True)
    assert asked(done) == "Hello" and json.loads(done.stdout)["usage"]["prompt_tokens"] > 100


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["run", "hi", "-n", "3", "--max-tokens", "4"], "--max-tokens"),
        (["run", "hi", "--system", "a", "-s", "b"], "--system"),
        (["run", "hi", "--tools", "nano", "--tools", "read"], "--tools"),
        (["chat", "--think", "--no-think"], "--no-think"),
        (["parse", "--in", "a", "--in", "b"], "--in"),
        (["bench", "--model", "nano", "-m", "x"], "--model"),
        (["rollout", "a", "--out", "b", "--out", "c"], "--out"),
        (["contexts", "import", "a", "b"], "extra argument"),
        (["run", "-f", "-", "--tools", "-"], "only once"),
        (["run", "-f", "-", "-f", "-"], "only once"),
    ],
)  # fmt: skip
def test_nothing_that_is_typed_is_dropped_unseen(monkeypatch, capsys, args, names):
    monkeypatch.setattr(sys, "argv", ["v4", *args])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and names in capsys.readouterr().err


def test_a_text_that_may_end_an_answer_can_be_repeated(run):
    said = run("--stop", "zzz", "--stop", "nano", "Hello, who are you?").stdout
    assert said == "I am \n"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--tools", "builtin"], "sets: nano"),
        (["--tools", "nano", "--approve", "maybe"], "ask, edits, plan, all"),
        (["--approve", "all"], "add --tools"),
        (["--max-rounds", "3", "--tools", "x.json"], "add --tools"),
    ],
)
def test_mistakes_say_what_to_do(run, args, says):
    done = run("x", *args)
    assert done.returncode == 2 and says in done.stderr and done.stdout == ""


def test_an_error_is_an_event_too(run):
    done = run("--output-format", "stream-json", "--model", "nowhere", "hi")
    assert done.returncode == 3
    assert [event["type"] for event in events(done)] == ["init", "error"]
    assert "v4 ls" in events(done)[1]["hint"] and "v4 ls" in done.stderr


@pytest.mark.skipif(sandbox.missing() != "", reason=sandbox.missing())
def test_ctrl_c_ends_a_running_call_and_exits_130(tmp_path):
    (tmp_path / "slow.sh").write_text("sleep 60\n")
    args = [*V4, "run", "--temp", "0", "--tools", "nano", "--approve", "all", "--output-format", "stream-json"]
    process = subprocess.Popen(
        [*args, "execute sh slow.sh"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    for line in process.stdout:
        if json.loads(line)["type"] == "tool_use":
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    last = json.loads(rest.splitlines()[-1])
    assert process.returncode == 130 and last["finish_reason"] == "interrupted"
    assert last["messages"][-1]["role"] == "tool"


def test_results_are_folded_and_cannot_speak_to_the_terminal():
    assert folded("a\nb\n") == "  a\n  b"
    assert folded("\n".join("abcdefg")).endswith("  d\n  … 3 more lines")
    assert len(folded("x" * 10_000)) < 300
    assert folded("\x1b[2Jé漢\t\x07") == "  é漢\t␇"


def test_json_of_half_a_character_is_json(capfd):
    output.json_line({"text": "\ud800 é"})
    said = capfd.readouterr().out
    assert json.loads(said) == {"text": "\ud800 é"} and "é" in said
