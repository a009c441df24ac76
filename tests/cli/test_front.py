"""What people type first: files beside a question, JSON by a schema, going on, templates, and finding it again."""

import json

import pytest
from inside import v4_inside  # noqa: F401  a fixture

from v4cli import paths
from v4cli.agent.transcript import Transcript


@pytest.fixture
def v4(v4_inside, tmp_path, monkeypatch):  # noqa: F811
    """`v4` in a folder and a home of its own."""
    (tmp_path / "work" / "src").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("V4_HOME", str(tmp_path / "home"))
    return v4_inside


@pytest.fixture
def work(tmp_path, v4):
    """That folder, with a few files."""
    work = tmp_path / "work"
    (work / "src" / "a.py").write_text("x = 1\n")
    (work / "src" / "b.py").write_text("y = 2\n")
    (work / "src" / "c.bin").write_bytes(b"\0\1")
    return work


def asked(v4, *args, stdin="") -> dict:
    """The last message of the user that `v4 run ARGS` sends."""
    done = v4("run", "--json", "-n", "2", *args, stdin=stdin)
    assert done.code == 0, done.err
    return [message for message in json.loads(done.out)["messages"] if message["role"] == "user"][-1]


def test_files_stand_before_the_question_with_names_and_sizes(v4, work):
    message = asked(v4, "-f", "src", "what", "is", "this?", "-f", "-", stdin="piped\n")
    blocks = [
        "src/a.py (6 bytes):\n```\nx = 1\n```", "src/b.py (6 bytes):\n```\ny = 2\n```",
        "stdin (6 bytes):\n```\npiped\n```", "what is this?",
    ]  # fmt: skip
    assert message == {"role": "user", "content": "\n\n".join(blocks), "shown": "what is this? @src"}
    assert asked(v4, "-f", "src/a.py")["content"] == "x = 1"  # a file alone is the prompt
    assert asked(v4, "-f", "src/a.py", stdin="why?\n")["content"] == f"why?\n\n{blocks[0]}"
    assert asked(v4, "why?", stdin="piped\n")["content"] == "piped\n\nwhy?"


def test_what_was_found_and_left_out_is_told(v4, work):
    done = v4("run", "-n", "1", "-f", "src", "hello")
    assert done.err.startswith("v4: 2 files, left out: 1 binary (src/c.bin); 5") and " tokens\n" in done.err


def test_a_prompt_of_files_that_exceeds_the_context_names_the_largest(v4, work):
    (work / "src" / "large.txt").write_text("word and " * 2_000_000)
    done = v4("run", "-f", "src", "hello")
    assert done.code == 2 and "fills the model's whole context" in done.err and done.out == ""
    assert "hint: give it less; the largest: src/large.txt (18,000,000 bytes), src/a.py" in done.err


def test_the_answer_goes_to_a_file_whole_or_not_at_all(v4, work):
    done = v4("run", "-o", "answer.md", "Hello, who are you?", "--temp", "0")
    assert done.code == 0 and done.out == "" and "nano" in (work / "answer.md").read_text()
    before = (work / "answer.md").read_text()
    assert v4("run", "-o", "answer.md", "x", "--schema", '{"type": "thing"}').code == 2
    assert v4("run", "-o", "answer.md", "x", "--format", "json", "-n", "2").code == 1
    assert (work / "answer.md").read_text() == before and not list(work.glob("*.tmp"))
    assert v4("run", "--json", "-o", "answer.md", "-n", "2", "hello").code == 0
    assert json.loads((work / "answer.md").read_text())["usage"]["completion_tokens"] == 2


def test_json_by_a_schema_is_printed_once_it_is_whole(v4):
    pytest.importorskip("llguidance")
    done = v4("run", "--schema", "ok bool, sure bool", "--temp", "0", "Is it?")
    assert done.code == 0 and set(json.loads(done.out)) == {"ok", "sure"} and done.out.count("\n") == 1
    result = json.loads(v4("run", "--think", "--json", "--schema", "ok bool", "--temp", "0", "Is it?").out)
    assert result["parsed"] == json.loads(result["text"]) and set(result["parsed"]) == {"ok"}
    assert result["reasoning_content"]
    cut = v4("run", "--schema", "ok bool, sure bool", "-n", "3", "Is it?")
    assert cut.code == 1 and cut.out == "" and "the limit of 3 tokens" in cut.err and "not printed" in cut.err
    assert "--max-tokens N allows more, maxLength in a schema bounds a string" in cut.err
    assert v4("run", "--format", "json", "-n", "2", "Is it?").code == 1


def test_a_string_of_bounded_length_ends_in_time(v4):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}}, "required": ["name"]}
    schema["additionalProperties"] = False  # else more of them may come, of any length
    done = v4("run", "--schema", json.dumps(schema), "--temp", "0", "-n", "60", "Tell me about Ada")
    assert done.code == 0 and len(json.loads(done.out)["name"]) <= 9


def test_log_probabilities_are_those_of_the_answer_s_tokens(v4):
    done = v4("run", "--think", "--json", "--logprobs", "2", "--temp", "0", "Hello, who are you?")
    result = json.loads(done.out)
    told = result["logprobs"]
    assert b"".join(bytes(entry["bytes"]) for entry in told).decode() == result["text"]
    assert all(entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 2 for entry in told)
    assert all(entry["top_logprobs"][0]["token"] == entry["token"] for entry in told)  # greedy
    assert all(entry["logprob"] == pytest.approx(entry["top_logprobs"][0]["logprob"], abs=1e-4) for entry in told)
    plain = json.loads(v4("run", "--json", "--logprobs", "0", "-n", "3", "hello").out)["logprobs"]
    assert [entry["top_logprobs"] for entry in plain] == [[]] * 3
    assert "logprobs" not in json.loads(v4("run", "--json", "-n", "1", "hello").out)


def test_a_conversation_goes_on_in_run_and_in_chat(v4):
    v4("run", "--temp", "0", "my name is Ada")
    assert "Ada" in v4("run", "--temp", "0", "-c", "what is my name?").out
    (kept,) = json.loads(v4("logs", "--json").out)
    assert kept["messages"] == 4 and kept["title"] == "my name is Ada" and kept["model"] == "nano"
    v4("run", "--temp", "0", "my name is Bob")
    result = json.loads(v4("run", "--temp", "0", "--json", "-r", kept["id"], "what is my name?").out)
    assert "Ada" in result["text"] and result["conversation"] == kept["id"] and len(result["messages"]) == 6
    done = v4("chat", "--temp", "0", "--no-think", "-c", "what", "is", "my", "name?")
    assert "Ada" in done.out and "6 messages so far" in done.err and done.code == 0


def test_what_is_not_to_be_kept_is_not(v4):
    v4("run", "-n", "1", "--no-log", "hello")
    v4("chat", "--no-log", "--no-think", "--tools", "none", "hello")
    assert not paths.chats_dir().exists()
    done = v4("run", "-c", "and now?")
    assert done.code == 2 and 'hint: v4 run "hello"' in done.err


def test_a_system_prompt_stays_with_its_conversation(v4):
    v4("run", "-n", "1", "-s", "Be brief.", "hello")
    result = json.loads(v4("run", "-n", "1", "--json", "-c", "and?").out)
    assert result["messages"][0] == {"role": "system", "content": "Be brief."}


def test_conversations_are_listed_shown_searched_and_deleted(v4, work):
    v4("run", "-n", "4", "-f", "src/a.py", "Where is the Lighthouse?")
    v4("run", "-n", "4", "hello")
    first, second = json.loads(v4("logs", "ls", "--json").out)
    assert [first["title"], second["title"]] == ["hello", "Where is the Lighthouse? @src/a.py"]
    assert len(v4("logs", "-n", "1").out.splitlines()) == 2
    shown = v4("logs", "show", second["id"])
    assert shown.out.startswith("# Where is the Lighthouse?") and "x = 1" in shown.out and "v4 chat -r" in shown.err
    assert v4("logs", "show").out.startswith("# hello")
    assert json.loads(v4("logs", "show", second["id"], "--json").out)["about"]["id"] == second["id"]
    found = v4("logs", "search", "LIGHTHOUSE", "where").out
    assert second["id"] in found and first["id"] not in found and "user: …" in found
    (hit,) = json.loads(v4("logs", "search", "--json", "lighthouse").out)
    assert hit["found"][0]["role"] == "user" and "Lighthouse" in hit["found"][0]["text"]
    assert v4("logs", "rm", first["id"]).code == 2
    assert v4("logs", "rm", first["id"], "--yes").code == 0
    assert [kept["id"] for kept in json.loads(v4("logs", "--json").out)] == [second["id"]]


def test_a_template_takes_what_is_said_and_its_variables(v4, work):
    folder = paths.templates_dir()
    folder.mkdir(parents=True)
    (folder / "review.md").write_text("Review this ${language} for $$5:\n$input\nBe kind.\n")
    (folder / "short.md").write_text("Summarise this.\n")
    message = asked(v4, "-t", "review", "--var", "language=$input", "-f", "src/a.py")
    assert message["content"] == "Review this $input for $5:\nsrc/a.py (6 bytes):\n```\nx = 1\n```\nBe kind.\n"
    assert asked(v4, "-t", "short", "a", "text")["content"] == "Summarise this.\n\na text"
    assert asked(v4, "-t", "short")["content"] == "Summarise this.\n"
    done = v4("chat", "--no-think", "--tools", "none", "-n", "2", "-t", "short", "-f", "src/a.py")
    assert done.code == 0
    kept = json.loads(v4("logs", "show", "--json").out)["messages"][0]["content"]
    assert kept == "Summarise this.\n\n@src/a.py\n\nsrc/a.py (6 bytes):\n```\nx = 1\n```"


def test_settings_are_changed_and_nothing_else(v4):
    path = paths.config_file()
    path.parent.mkdir(parents=True)
    path.write_text('# mine\ntemp = 0.7  # warm\n\n[mcp.files]\ncommand = ["x"]\n')
    assert v4("config", "set", "think", "max").code == 0
    assert v4("config", "set", "temp", "0.5").code == 0
    assert path.read_text() == '# mine\ntemp = 0.5\nthink = "max"\n\n[mcp.files]\ncommand = ["x"]\n'
    assert v4("config", "set", "temp", "default").code == 0
    assert path.read_text() == '# mine\nthink = "max"\n\n[mcp.files]\ncommand = ["x"]\n'
    assert json.loads(v4("config", "--json").out)["think"] == {"value": "max", "origin": str(path)}
    path.write_text('"temp" = 1\n')
    done = v4("config", "set", "temp", "0.5")
    assert done.code == 2 and "only an editor can change" in done.err and path.read_text() == '"temp" = 1\n'


def test_a_setting_that_something_goes_before_says_so(v4, monkeypatch):
    monkeypatch.setenv("V4_TEMP", "1")
    assert "V4_TEMP goes before it: temp is 1.0 here" in v4("config", "set", "temp", "0.5").err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["help"], "Commands:"), (["help", "run"], "Usage: v4 run"), (["help", "logs", "show"], "Usage: v4 logs show"),
        (["help", "templates"], "$input"), (["-v"], "0."), (["--version"], "0."), (["config"], "temp"),
        (["help", "sessions"], "Usage: v4 contexts"),
    ],
)  # fmt: skip
def test_what_people_try_does_the_obvious(v4, words, says):
    done = v4(*words)
    assert done.code == 0 and says in done.out and done.err == ""


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("v4 run -m na", "nano"), ("v4 pull fl", "flash"), ("v4 run --backend ", "cpu"), ("v4 run -t sh", "short"),
        ("v4 config set te", "temp"), ("v4 run -r ", "2026-kept"), ("v4 logs rm ", "2026-kept"), ("v4 he", "help"),
        ("v4 contexts show ", ""), ("v4 rm -", "--yes"),
    ],
)  # fmt: skip
def test_tab_completes_names_ids_and_values(v4, monkeypatch, typed, found):
    paths.templates_dir().mkdir(parents=True)
    (paths.templates_dir() / "short.md").write_text("x")
    Transcript.new(paths.chats_dir(), [{"role": "user", "content": "hello"}], id="2026-kept")
    monkeypatch.setenv("_V4_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))
    done = v4()
    assert done.code == 0 and done.err == "" and found in done.out.split("\n")
