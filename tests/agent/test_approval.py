"""Who decides about calls: modes, rules and the user."""

import json
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from v4cli import paths
from v4cli.agent import approval, sandbox
from v4cli.agent.approval import Answer, Approvals, Choice, Mode, matches, pattern
from v4cli.agent.builtin import toolbox
from v4cli.agent.tools import Context, Kind, Tool, Toolbox, ToolError, parameters
from v4cli.errors import UsageError
from v4cli.settings import KEYS

BOX = toolbox("all,fetch_url")
READ = ("read_file", {"path": "a"})
EDIT = ("write_file", {"path": "a", "content": "x\n"})
RUN = ("run_shell", {"command": "git status"})
NETWORK = ("fetch_url", {"url": "https://example.org/a"})
CALLS = {"read": READ, "edit": EDIT, "run": RUN, "network": NETWORK}


def call(name: str, arguments: dict):
    return BOX.call({"function": {"name": name, "arguments": json.dumps(arguments)}})


def shell(command: str):
    return call("run_shell", {"command": command})


@pytest.fixture(autouse=True)
def protected(tmp_path, monkeypatch):
    """A home of its own, and a sandbox there, whatever this machine has."""
    monkeypatch.setenv("V4_HOME", str(tmp_path / "v4"))
    monkeypatch.setattr(sandbox, "missing", lambda: "")


@pytest.fixture
def unprotected(monkeypatch):
    monkeypatch.setattr(sandbox, "missing", lambda: "bubblewrap (bwrap) is not installed")


class User:
    """Gives the answers in order, and keeps what was asked."""

    def __init__(self, *answers: Answer):
        self.answers, self.asked = list(answers), []

    def __call__(self, request):
        self.asked.append(request)
        return self.answers.pop(0)


def decide(approvals, name, arguments):
    return approvals.decide(call(name, arguments), Context(approvals.folder))


@pytest.mark.parametrize(
    ("mode", "free"),
    [("ask", {"read"}), ("edits", {"read", "edit"}), ("plan", {"read"}), ("all", {"read", "edit", "run", "network"})],
)
def test_what_runs_without_a_question(tmp_path, mode, free):
    for kind, (name, arguments) in CALLS.items():
        user = User(Answer(Choice.YES))
        decision = decide(Approvals(mode, tmp_path, user), name, arguments)
        assert decision.allowed == (kind in free or mode != "plan")
        assert bool(user.asked) == (kind not in free and mode != "plan")
        alone = decide(Approvals(mode, tmp_path), name, arguments)
        assert alone.allowed == (kind in free)
        if not alone.allowed:
            assert ("only reading" if mode == "plan" else "--approve") in alone.reason


def test_the_user_sees_what_it_is_about(tmp_path):
    user = User(*[Answer(Choice.YES)] * 3)
    approvals = Approvals(Mode.ASK, tmp_path, user)
    for request in (EDIT, RUN, NETWORK):
        decide(approvals, *request)
    edit, run, network = user.asked
    assert edit.preview == "--- /dev/null\n+++ b/a\n@@ -0,0 +1 @@\n+x\n" and edit.pattern == "write_file: *"
    assert run.preview == "git status" and run.pattern == "run_shell: git status*" and run.unprotected == ""
    assert network.preview == "https://example.org/a" and network.pattern == "fetch_url: https://example.org/*"


def test_a_call_that_cannot_work_is_not_asked_about(tmp_path):
    user = User()
    with pytest.raises(ToolError, match="no such file"):
        decide(Approvals(Mode.ASK, tmp_path, user), "edit_file", {"path": "a", "old": "a", "new": "b"})
    assert not user.asked


def test_no_with_a_word_for_the_model(tmp_path):
    user = User(Answer(Choice.NO, "use the other file"), Answer(Choice.NO))
    approvals = Approvals(Mode.ASK, tmp_path, user)
    assert decide(approvals, *RUN).reason == "the user said no: use the other file"
    assert decide(approvals, *RUN).reason == "the user said no"


def test_words_that_are_neither_yes_nor_no_are_told_and_nothing_runs(tmp_path):
    decision = decide(Approvals(Mode.ASK, tmp_path, User(Answer(Choice.WORDS, "yes please also c"))), *RUN)
    assert not decision.allowed and decision.reason.endswith("neither yes nor no, but: yes please also c")


@pytest.mark.parametrize(
    ("mode", "kind", "reason"),
    [("all", "run", ""), ("plan", "run", "only reading"), ("plan", "edit", "only reading"), ("edits", "edit", ""),
     ("edits", "run", "the user said no"), ("ask", "run", "the user said no")],
)  # fmt: skip
def test_a_change_of_mode_decides_about_the_call_that_waits(tmp_path, mode, kind, reason):
    asked = []

    def ask(request):
        asked.append(request)
        if len(asked) > 1:
            return Answer(Choice.NO)
        approvals.mode = mode  # a text, as slash commands have it

    approvals = Approvals("ask", tmp_path, ask)
    decision = decide(approvals, *CALLS[kind])
    assert decision.allowed == (not reason) and decision.reason.startswith(reason)
    assert approvals.mode is Mode(mode) and len(asked) == (2 if "said no" in reason else 1)


def test_a_folder_with_any_name_can_have_rules(tmp_path):
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    assert decide(Approvals(Mode.ASK, folder, User(Answer(Choice.ALWAYS))), *RUN).allowed
    assert decide(Approvals(Mode.ASK, folder), *RUN).allowed


def test_yes_is_for_once_session_for_this_object_always_for_the_folder(tmp_path):
    user = User(Answer(Choice.YES), Answer(Choice.SESSION), Answer(Choice.ALWAYS))
    approvals = Approvals(Mode.ASK, tmp_path, user)
    for command in ("git status", "git status", "git status -s"):
        assert approvals.decide(shell(command), Context(tmp_path)).allowed
    assert len(user.asked) == 2
    assert approvals.decide(shell("ls -l"), Context(tmp_path)).allowed and len(user.asked) == 3
    later = Approvals(Mode.ASK, tmp_path)
    assert later.decide(shell("ls docs"), Context(tmp_path)).allowed
    assert not later.decide(shell("git status"), Context(tmp_path)).allowed
    (tmp_path / "other").mkdir()
    assert not Approvals(Mode.ASK, tmp_path / "other").decide(shell("ls docs"), Context(tmp_path)).allowed


def test_a_rule_that_cannot_be_kept_holds_for_the_session_and_that_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("V4_HOME", str(tmp_path / "file"))
    approvals = Approvals(Mode.ASK, tmp_path, User(Answer(Choice.ALWAYS)))
    assert decide(approvals, *RUN).allowed and decide(approvals, *RUN).allowed
    assert len(approvals.notes) == 1 and "for this session only" in approvals.notes[0]


def test_rules_do_not_count_in_plan_mode_and_the_mode_can_change(tmp_path):
    approvals = Approvals(Mode.ASK, tmp_path, User(Answer(Choice.SESSION)))
    assert decide(approvals, *RUN).allowed
    approvals.mode = Mode.PLAN
    assert not decide(approvals, *RUN).allowed
    approvals.mode = Mode.ALL
    assert decide(approvals, "run_python", {"code": "1"}).allowed


@pytest.mark.parametrize("mode", ["ask", "edits", "all"])
def test_without_a_sandbox_each_run_is_asked_about(tmp_path, unprotected, mode):
    user = User(Answer(Choice.ALWAYS), Answer(Choice.YES))
    approvals = Approvals(mode, tmp_path, user)
    assert decide(approvals, *RUN).allowed and decide(approvals, *RUN).allowed
    assert [request.unprotected for request in user.asked] == ["bubblewrap (bwrap) is not installed"] * 2
    assert [request.pattern for request in user.asked] == ["", ""]
    reason = decide(Approvals(mode, tmp_path), *RUN).reason
    assert "there is no sandbox (bubblewrap (bwrap) is not installed)" in reason
    assert approvals.rules == []


def test_rules_of_a_sandbox_do_not_count_without_one(tmp_path, monkeypatch):
    assert decide(Approvals(Mode.ASK, tmp_path, User(Answer(Choice.ALWAYS))), *RUN).allowed
    assert decide(Approvals(Mode.ASK, tmp_path), *RUN).allowed
    monkeypatch.setattr(sandbox, "missing", lambda: "gone")
    assert not decide(Approvals(Mode.ASK, tmp_path), *RUN).allowed


def test_the_file_of_rules_is_private_and_shared(tmp_path):
    def remember(i: int):
        command = ("run_shell", {"command": f"tool{i} a/b"})
        decide(Approvals(Mode.ASK, tmp_path, User(Answer(Choice.ALWAYS))), *command)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(remember, range(24)))
    file = paths.state_dir() / "approvals.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(json.loads(file.read_text())[str(tmp_path)]) == sorted(f"run_shell: tool{i} a/b" for i in range(24))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"/x": "y"}', '{"/x": [1]}', "\xff"])
def test_a_broken_file_of_rules_is_named(tmp_path, text):
    file = paths.state_dir() / "approvals.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(UsageError, match=r"approvals\.json") as error:
        Approvals(Mode.ASK, tmp_path)
    assert error.value.hint == "correct the file, or remove it"
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("command", "suggested"),
    [("git status", "git status*"), ("git status --short", "git status*"), ("ls -l docs", "ls*"), ("pwd", "pwd"),
     ("cat a/b.txt", "cat*"), ("git log --oneline -n 5 -- src", "git log*"), ("grep -r 'two words' .", "grep*"),
     ("git diff --stat=80 HEAD", "git diff*"), (" ls  -l ", "ls*")],
)  # fmt: skip
def test_what_only_reads_may_have_a_rule_for_all_its_calls(command, suggested):
    rule = pattern(shell(command))
    assert rule == f"run_shell: {suggested}" and matches(rule, shell(command))


@pytest.mark.parametrize(
    "command",
    ["python3.11 -c 1", "python3.13t x.py", "pypy3 x", "./python -c 1", "/usr/bin/env ls", "nodejs x.js", "deno run x",
     "bun x", "perl5.36 -e 1", "php8.2 -r 1", "Rscript x.R", "lua5.4 x", "rbash -c ls", "dash x", "mksh x", "gawk x y",
     "mawk x y", "sed -i s/a/b/ x", "env FOO=1 rm x", "sudo ls", "doas ls", "xargs ls", "find . -delete",
     "find . -name x", "nice ls", "nohup ls", "timeout 5 ls", "time ls", "strace ls", "ssh host ls", "docker run x",
     "podman run x", "make test", "gmake x", "npm run x", "npx x", "yarn x", "pnpm x", "uv run x", "uvx x",
     "pipx run x", "poetry run x", "cargo run", "go run x.go", "java -jar x.jar", "gdb -ex run x", "vim -c q x",
     "ed x", "less x",
     "man -P sh ls", "tar xf x --to-command=sh", "busybox sh x", "toybox sh x", "git -C . log", "git -c a.b=c log",
     "git --exec-path=. log", "git --git-dir=x log", "git --paginate log", "git lg", "git push", "git commit -m x",
     "git config x y", "git log --output=x", "git log --outpu=x", "git log --ext-diff", "git diff --ext-diff",
     "git diff --no-index a b --output=x", "git show --textconv x", "git log --format=%G?", "git log -O/x", "git log *",
     "git diff '--output=x'", "git log ?-output=x", "rg --pre sh x", "rg x", "sort -o x y", "sort x", "uniq a b",
     "tree -o x", "./script x", "scripts/run x", "./ls -l", "/tmp/ls -l", "bin/git status", "pytest -q",
     "ld.so /bin/sh x", "ls-x y", "cats x", "l\u0455 -l", "watch ls", "tee x", "cp a b", "rm -r build", "gcc -o x x.c"],
)  # fmt: skip
def test_everything_else_has_a_rule_for_that_command_alone_or_none(command):
    rule = pattern(shell(command))
    assert rule in (f"run_shell: {command}", "")
    assert not rule or matches(rule, shell(command))
    for other in (f"{command}x", f"{command} x", f"x {command}", f"{command} --version", command.replace(" ", "  ")):
        assert not rule or not matches(rule, shell(other))
    for reader in ("git log", "git status", "git diff", "git show", "ls", "cat", "grep", "git", "find", "sort"):
        assert not matches(f"run_shell: {reader}*", shell(command))


@pytest.mark.parametrize("command", ["rm *", "python3 *", "ls\u3164 x", "cat \u115fx", "X=1 ls", "LD_PRELOAD=x ls -l"])
def test_what_a_rule_would_not_mean_to_the_letter_has_none(command):
    assert pattern(shell(command)) == ""


def test_quotes_are_part_of_what_was_allowed():
    assert not matches(pattern(shell("rm 'a *' b")), shell("rm a * b"))
    assert not matches(pattern(shell("rm '*' b")), shell("rm * b"))


def test_code_has_no_rule_and_tools_of_edits_have_one():
    assert pattern(call("run_python", {"code": "1"})) == ""
    assert not matches("run_python: *", call("run_python", {"code": "1"}))
    assert pattern(call("edit_file", {"path": "a", "old": "b", "new": "c"})) == "edit_file: *"


def test_rules_of_earlier_versions_that_allow_too_much_are_named_and_not_used(tmp_path):
    file = paths.state_dir() / "approvals.json"
    file.parent.mkdir(parents=True)
    wide = ["run_shell: python3.11*", "run_shell: git*", "run_shell: find*", "run_python: *", "run_shell: *"]
    kept = ["run_shell: git status*", "run_shell: make test", "write_file: *", "fetch_url: https://example.org/*"]
    file.write_text(json.dumps({str(tmp_path): [*wide, *kept]}))
    approvals = Approvals(Mode.ASK, tmp_path)
    assert approvals.rules == kept and len(approvals.notes) == len(wide)
    assert all(rule in note and str(file) in note for rule, note in zip(wide, approvals.notes))
    for command in ("python3.11 -c 1", "git -C . log", "git push", "find . -delete"):
        assert not approvals.decide(shell(command), Context(tmp_path)).allowed
    assert approvals.decide(shell("make test"), Context(tmp_path)).allowed
    assert Approvals(Mode.ASK, tmp_path / "elsewhere").notes == []


TRICKS = [
    "git status; rm -rf ~", "git status;rm -rf ~", "git status && rm x", "git status || rm x", "git status | sh",
    "git status & rm x", "git status\nrm x", "git status\rrm x", "git status $(rm x)", "git status `rm x`",
    "git status > ~/.bashrc", "git status >x", "git status < x", "git status <(rm x)", "git status $HOME",
    "git status ${x:-y}", "git status {a,b}", "git status \\\nrm", "(git status)", "{ git status; }", "! git status",
    "X=1 git status", "git status #", "git status ~root", "git status\u2028rm x", "git status \"$(rm x)\"",
    "git status '", "git status \x1b[A", "if git status", "GIT_PAGER=evil git status", "git statusx", "git-status",
    "gitstatus", "git", "/tmp/git status", "./git status", "git -c alias.status=!rm status", "git\tstatus;x", "", " ",
    "git 'status;rm'", "git status\x00", "git status ^x", "git status\x0brm", "git status\x85rm",
]  # fmt: skip


@pytest.mark.parametrize("command", TRICKS)
def test_a_rule_is_not_fooled(tmp_path, command):
    for rule in ("run_shell: git status*", "run_shell: git status"):
        assert not matches(rule, shell(command))
    approvals = Approvals(Mode.ASK, tmp_path, User(Answer(Choice.SESSION)))
    assert decide(approvals, *RUN).allowed
    approvals.ask = None
    assert not approvals.decide(shell(command), Context(tmp_path)).allowed


@pytest.mark.parametrize("command", [c for c in TRICKS if any(mark in c for mark in ";&|\n$`<>(){}")])
def test_no_rule_is_suggested_for_more_than_a_command(command):
    assert pattern(shell(command)) == ""


def test_what_rules_match():
    for command in (
        "git status",
        "git status -s",
        "git  status",
        "git status 'a b'",
        "git status -- src/*.py",
        '"git" status',
    ):
        assert matches("run_shell: git status*", shell(command))
    assert matches("run_shell: git status", shell("git status"))
    assert not matches("run_shell: git status", shell("git status -s"))
    assert not matches("run_python: *", shell("git status"))
    for rule in ("run_shell: *", "run_shell: ", "run_shell", "", "*", ": *"):
        assert not matches(rule, shell("git status"))


@pytest.mark.parametrize(
    "url",
    ["https://example.org.evil.net/", "https://example.org@evil.net/", "http://example.org/",
     "https://evil.net/?https://example.org/", "https://example.orgx/", "https://example.org:444/"],
)  # fmt: skip
def test_a_rule_for_a_site_is_for_that_site(url):
    assert matches("fetch_url: https://example.org/*", call("fetch_url", {"url": "https://example.org/x/y"}))
    assert not matches("fetch_url: https://example.org/*", call("fetch_url", {"url": url}))


def test_tools_of_others(tmp_path):
    tool = Tool("weather", "Tell the weather", parameters(["city"], city="a city"), Kind.NETWORK, lambda a, c: "rain")
    asked = Toolbox([tool]).call({"function": {"name": "weather", "arguments": '{"city": "Köln"}'}})
    user = User(Answer(Choice.ALWAYS))
    assert Approvals(Mode.EDITS, tmp_path, user).decide(asked, Context(tmp_path)).allowed
    assert user.asked[0].preview == '{\n  "city": "Köln"\n}' and user.asked[0].pattern == "weather: *"
    assert Approvals(Mode.ASK, tmp_path).decide(asked, Context(tmp_path)).allowed
    assert approval.FLAG == "--approve" and KEYS["approve"].choices == tuple(Mode)


@pytest.mark.parametrize("name", ["write_file", "edit_file"])
def test_what_was_shown_is_what_is_done(tmp_path, name):
    """A file that changes while the user thinks is not written over unseen."""
    (tmp_path / "x").write_text("old")
    arguments = {"content": "new"} if name == "write_file" else {"old": "old", "new": "new"}

    def slow(request):
        (tmp_path / "x").write_text("old and new of the user")
        return Answer(Choice.ALWAYS)

    approvals = Approvals(Mode.ASK, tmp_path, slow)
    decision = decide(approvals, name, {"path": "x"} | arguments)
    assert not decision.allowed and "a file has changed" in decision.reason and approvals.rules == []
