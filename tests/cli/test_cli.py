"""The command as a user runs it: a real process, real pipes, real signals."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from v4kernels import native

from v4cli.cli.plumbing import score_tokens
from v4cli.errors import UsageError

V4 = [sys.executable, str(Path(__file__).with_name("measuring_little.py"))]


def v4(*args, stdin="", env=None, timeout=120):
    """Run v4 to its end."""
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
    return subprocess.run(
        [*V4, *map(str, args)], input=stdin, capture_output=True, text=True, timeout=timeout, env=variables
    )


HEAVY = "torch numpy tokenizers rich prompt_toolkit mcp httpx2 tomllib psutil v4cli.agent v4cli.settings".split()


@pytest.mark.parametrize(("args", "heavy"), [(["--help"], HEAVY), (["run", "--help"], HEAVY[:-1])])
def test_help_imports_nothing_heavy(args, heavy):
    code = (
        "import sys\nfrom v4cli.cli.app import app\n"
        f"try: app({args})\nexcept SystemExit: pass\n"
        f"sys.exit(', '.join(sys.modules.keys() & {set(heavy)}) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "" and "Usage" in done.stdout


def test_doctor_needs_no_torch():
    code = (
        "import sys\nfrom v4cli.cli.app import app\n"
        "try: app(['doctor'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
def test_run_on_the_kernels_needs_no_torch():
    """A second of the start, and 200 MB."""
    code = (
        "import sys\nfrom v4cli.cli.app import app\n"
        "try: app(['run', '--model', 'nano', '-n', '5', 'Hello'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 and done.stdout.strip()


def test_run_answers_on_stdout_only():
    done = v4("run", "Hello, who are you?", "--stats", "-n", "60")
    assert done.returncode == 0
    assert done.stdout.strip() and "\x1b" not in done.stdout + done.stderr
    assert "tok/s" in done.stderr


def test_run_json_has_the_promised_keys_and_stdin_comes_first(tmp_path):
    plain = json.loads(v4("run", "--json", "-n", "8", stdin="one\n\ntwo").stdout)
    joined = json.loads(v4("run", "--json", "-n", "8", "two", stdin="one\n").stdout)
    (tmp_path / "p.txt").write_text("one\n\ntwo\n")
    from_file = json.loads(v4("run", "--json", "-n", "8", "-f", tmp_path / "p.txt").stdout)
    assert plain["text"] == joined["text"] and plain["usage"] == joined["usage"]
    assert from_file["messages"][0]["content"] == "one\n\ntwo"
    assert {"model", "text", "reasoning_content", "tool_calls", "finish_reason", "usage", "stats"} <= set(plain)
    assert {"prompt_tokens", "cached_tokens", "completion_tokens"} <= set(plain["usage"])
    assert {
        "load_s",
        "prefill_s",
        "prefill_tokens_per_s",
        "decode_s",
        "decode_tokens_per_s",
        "peak_rss_bytes",
    } <= set(plain["stats"])


def test_stream_json_is_one_event_per_line_and_adds_up():
    lines = [json.loads(line) for line in v4("run", "--output-format", "stream-json", "hi").stdout.splitlines()]
    assert [lines[0]["type"], lines[-1]["type"]] == ["init", "result"]
    assert "".join(e["text"] for e in lines if e["type"] == "message") == lines[-1]["text"]


def test_no_stream_thinking_and_seed():
    a = v4("run", "--think", "--no-stream", "--seed", "5", "--temp", "1.5", "hi", "-n", "40")
    b = v4("run", "--think", "--hide-thinking", "--seed", "5", "--temp", "1.5", "hi", "-n", "40")
    assert a.returncode == b.returncode == 0
    assert a.stdout == b.stdout
    cut = v4("run", "--think", "--hide-thinking", "--seed", "5", "hi", "-n", "3")
    assert cut.stderr.startswith("v4: cut off at the limit of 3 tokens (--max-tokens)")


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["run", "x", "--think", "--no-think"], 2, "drop --no-think"),
        (["run", "x", "--file", "y"], 2, "y: cannot be read"),
        (["run", "x", "--json", "--output-format", "text"], 2, "drop --json"),
        (["run"], 2, "no prompt"),
        (["run", "x", "--temp", "-1"], 2, "temperature"),
        (["run", "x", "--bogus"], 2, "No such option"),
        (["run", "x", "--model", "nowhere"], 3, "v4 ls"),
        (["run", "x", "--backend", "warp"], 2, "reference"),
        (["run", "x", "--tools", "/nonexistent"], 2, "cannot be read"),
        (["show", "nowhere"], 3, "not found"),
        (["score", "--model", "nano"], 2, "exactly one"),
        (["render", "--in", "/nonexistent", "--contract", "april"], 2, "cannot be read"),
        (["render", "--in", "-", "--contract", "v9"], 2, "april"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_mistakes_have_their_exit_code_and_say_what_to_do(args, code, says):
    done = v4(*args)
    assert done.returncode == code
    assert says in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


def test_chat_reads_lines_from_a_pipe_and_keeps_the_conversation():
    done = v4("chat", "--no-think", stdin="hello\nwho are you?\n/stats\n/clear\n/nonsense\n/exit\n")
    assert done.returncode == 0
    assert len(done.stdout.strip().splitlines()) >= 2
    assert "cached" in done.stderr


def test_a_line_without_an_end_is_refused():
    with open("/dev/zero", "rb") as endless:
        done = subprocess.run(
            [sys.executable, "-m", "v4cli", "chat", "--plain"],
            stdin=endless,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 2 and "v4: stdin: a line of more than 64 MiB\n" in done.stderr


def test_libraries_say_nothing_of_their_own_affairs():
    env = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_ENABLE_HF_TRANSFER": "1"}
    done = v4("pull", "org/model", "--dry-run", env=env)
    assert done.returncode == 5 and done.stderr.startswith("v4: ") and done.stderr.count("\n") == 2


def test_ctrl_c_keeps_what_was_said_and_exits_130():
    args = [*V4, "run", "--temp", "50", "--seed", "1", "-n", "100000", "write a lot"]
    process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = process.stdout.read(1)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert first + rest and b"Traceback" not in errors


def test_closed_pipe_ends_silently():
    command = f"{sys.executable} -m v4cli run --temp 50 --seed 1 -n 400 'write a lot' </dev/null | head -c 5"
    command += "; exit ${PIPESTATUS[0]}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr and done.stderr.strip() == "" and done.returncode == 0


def test_ls_show_doctor_and_version():
    assert "nano" in v4("ls").stdout
    about = json.loads(v4("show", "nano", "--json").stdout)
    assert about["bytes"]["total"] < 12e6 and about["parameters"] > 5e6
    assert "nano" in v4("show").stdout
    checks = json.loads(v4("doctor", "--json").stdout)
    assert {"cpu", "memory", "model nano"} <= {check["check"] for check in checks}
    assert v4("version").stdout == v4("--version").stdout


def test_score_agrees_for_every_chunking_and_writes_logits(tmp_path):
    (tmp_path / "ids").write_text("0, 5 17\n300,301 8 9 10 11 12")
    whole = v4("score", "--ids", tmp_path / "ids", "--logits", tmp_path / "a.npz")
    pieces = v4("score", "--ids", tmp_path / "ids", "--logits", tmp_path / "b.npz", "--chunk", "3")
    a, b = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
    assert a["ids"].tolist() == [0, 5, 17, 300, 301, 8, 9, 10, 11, 12] and a["ids"].dtype == np.int64
    assert a["logits"].shape == (10, 1024) and a["logits"].dtype == np.float32
    assert np.abs(a["logits"] - b["logits"]).max() < 1e-4
    scores, other = json.loads(whole.stdout), json.loads(pieces.stdout)
    assert scores["nll"] == pytest.approx(other["nll"], abs=1e-5)
    assert scores["perplexity"] == pytest.approx(np.exp(scores["nll"]))
    logits = a["logits"][0].astype(float)
    assert scores["logprobs"][0] == pytest.approx(logits[5] - np.log(np.exp(logits).sum()), abs=1e-5)


def test_render_and_parse_follow_the_golden_cases(golden, tmp_path):
    case = json.loads((golden / "encoding" / "v4_april_encoder_cases.json").read_text())[4]
    request = {"messages": case["messages"], "kwargs": case["kwargs"]}
    done = v4("render", "--in", "-", "--contract", "april", "--ids", stdin=json.dumps(request))
    assert json.loads(done.stdout)["prompt"] == case["prompt"]
    assert json.loads(done.stdout)["ids"][0] == 0
    case = json.loads((golden / "encoding" / "recipe_oracle" / "stream_parse_cases.json").read_text())[1]
    done = v4("parse", "--in", "-", "--thinking", stdin=case["completion"])
    assert json.loads(done.stdout) == case["expected"]


def test_render_says_what_the_april_encoder_would_not_read():
    for field in ("tools", "thinking", "response_format", "tool_choice", "reasoning_effort"):
        body = {"messages": [{"role": "user", "content": "hi"}], field: None}
        done = v4("render", "--in", "-", "--contract", "april", stdin=json.dumps(body))
        assert done.returncode == 2 and field in done.stderr and "0731" in done.stderr


def test_what_is_not_read_is_said():
    hi = {"messages": [{"role": "user", "content": "hi"}]}
    for body, said in (({"thinking": False, "model": "x"}, ""), ({"enable_thinking": 0, "functions": []}, "functions")):
        done = v4("render", "--in", "-", "--contract", "0731", stdin=json.dumps(hi | body))
        assert done.returncode == 0 and bool(done.stderr) == bool(said) and said in done.stderr
    block = "<\uff5cDSML\uff5ctool_calls>\n<\uff5cDSML\uff5cinvoke name='f'/>\n</\uff5cDSML\uff5ctool_calls>"
    for rest, said in (("\n", ""), (" and so", "6 characters"), (block, f"{len(block)} characters")):
        done = v4("parse", "--in", "-", stdin=f"So.\n{block}{rest}")
        assert done.returncode == 0 and bool(done.stderr) == bool(said) and said in done.stderr
        assert len(json.loads(done.stdout)["tool_calls"]) == 1


def test_score_refuses_what_cannot_fit_before_it_is_encoded(tmp_path, monkeypatch):
    monkeypatch.setattr("v4cli.chat.pieces.encode", lambda *_: pytest.fail("encoded"))
    (tmp_path / "long").write_text("some words, " * 2_000_000)
    with pytest.raises(UsageError, match="whole context"):
        score_tokens("nano", None, tmp_path / "long", None, None, None, 100)


def test_mutated_requests_render_or_fail_in_one_line(golden):
    """In process, through the same code the command runs."""
    from v4cli.chat.encoding import encode_april
    from v4cli.chat.requests import encode_request
    from v4cli.errors import RequestError

    rng = random.Random(3)
    april = json.loads((golden / "encoding" / "v4_april_encoder_cases.json").read_text())
    recipe = json.loads((golden / "encoding" / "recipe_oracle" / "prompt_cases.json").read_text())
    junk = [
        None,
        1,
        "x",
        [],
        {},
        [None],
        {"type": 3},
        True,
        1e308,
        [[[]]],
        {"role": "user"},
        "\ud800",
        [{"type": "text"}],
    ]
    refused = 0
    for i in range(400):
        case = json.loads(json.dumps(rng.choice(april if i % 2 else recipe)))
        root = case if i % 2 else case["body"]
        for _ in range(rng.randint(1, 3)):
            if not root:
                break
            target, key = _random_place(rng, root)
            if rng.random() < 0.25:
                del target[key]
            else:
                target[key] = rng.choice(junk)
        try:
            if i % 2:
                encode_april(root.get("messages"), **(root["kwargs"] if isinstance(root.get("kwargs"), dict) else {}))
            else:
                encode_request(root, "0731")
        except RequestError as error:
            refused += 1
            assert "\n" not in str(error)
        except TypeError as error:  # unknown keyword in kwargs: the command checks names first
            assert i % 2 and "unexpected keyword" in str(error)
    assert refused > 100


def _random_place(rng, root):
    """Some key of some container inside the request."""
    target = root
    while True:
        key = rng.choice(list(target)) if isinstance(target, dict) else rng.randrange(len(target))
        child = target[key]
        if not isinstance(child, (dict, list)) or not child or rng.random() < 0.25:
            return target, key
        target = child


def test_a_full_disk_is_told_with_the_file_that_does_not_fit(tmp_path, full_disk):
    from v4cli.files import write_atomically

    with full_disk(), pytest.raises(OSError) as error:
        write_atomically(tmp_path / "result", b"text")
    assert error.value.filename == str(tmp_path / "result") and list(tmp_path.iterdir()) == []
