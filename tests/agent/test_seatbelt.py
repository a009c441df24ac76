"""The profile of macOS' sandbox, by a reader of its language that decides as the system does: the last rule counts."""

import os
import re
import shlex
import stat

import pytest

from v4cli.agent import process, sandbox, seatbelt, started
from v4cli.agent.process import Limits

FOLDER, HOME = "/Users/me/work", "/private/var/folders/x/v4-home"
NASTY = [
    '/Users/me/a "b"',
    "/Users/me/(deny default)",
    "/Users/me/back\\slash\\",
    '/Users/me/\\" (allow default) "',
    "/x/a\nb\t;c",
]
UNREADABLE = [
    "/Users/me/.ssh/id_rsa", "/Users/me/worked", "/Users/you/x", "/Library/Keychains/System.keychain",
    "/System/Volumes/Data/Users/me/x", "/private/var/folders/y/secret", "/Volumes/disk/x",
]  # fmt: skip
BEYOND = [
    ("network-outbound", "remote"), ("network-inbound", "local"), ("network-bind", "local"), ("system-socket", ""),
    ("network-outbound", seatbelt.RESOLVER), ("mach-lookup", "com.apple.coreservices.launchservicesd"),
    ("mach-register", "x"), ("appleevent-send", "com.apple.finder"), ("iokit-open", "x"), ("signal", "others"),
    ("job-creation", "x"), ("file-link", FOLDER),
]  # fmt: skip
TOKEN = re.compile(r'\s*(?:([()])|"((?:[^"\\]|\\.)*)"|([^\s()"]+))', re.DOTALL)
ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


def read(text: str) -> list:
    """The lists of a profile; strings are tuples of one, to be told from symbols."""
    stack, at = [[]], 0
    while text[at:].strip():
        found = TOKEN.match(text, at)
        assert found, text[at:]
        at = found.end()
        if found[1] == "(":
            stack.append([])
        elif found[1] == ")":
            done = stack.pop()
            stack[-1].append(done)
        elif found[3]:
            stack[-1].append(found[3])
        else:
            stack[-1].append((re.sub(r"\\(.)", lambda e: ESCAPES.get(e[1], e[1]), found[2], flags=re.DOTALL),))
    assert len(stack) == 1
    return stack[0]


def allowed(profile: str, operation: str, at: str = "") -> bool:
    """Whether the operation is allowed on a path or a name."""
    decision = None
    for rule in read(profile):
        if rule[0] not in ("allow", "deny"):
            continue
        filters = [part for part in rule[1:] if isinstance(part, list)]
        names = [part for part in rule[1:] if isinstance(part, str)]
        about = any(
            name in (operation, "default") or (name[-1] == "*" and operation.startswith(name[:-1])) for name in names
        )
        if about and (not filters or any(matches(one, at) for one in filters)):
            decision = rule[0] == "allow"
    assert decision is not None
    return decision


def matches(condition: list, at: str) -> bool:
    kind, value = condition[0], condition[-1]
    if kind == "subpath":
        return at == value[0] or at.startswith(value[0] + "/")
    if kind in ("literal", "global-name"):
        return at == value[0]
    assert kind in ("target", "remote", "local")
    return at == (value if isinstance(value, str) else kind)


def test_only_the_folder_and_what_is_the_runs_own_can_be_written():
    profile = seatbelt.profile(FOLDER, HOME)
    for path in (FOLDER, f"{FOLDER}/a/b", f"{HOME}/x"):
        for operation in ("file-read-data", "file-write-create", "file-write-unlink", "file-write-data"):
            assert allowed(profile, operation, path)
    for path in (
        "/Users/me/.zshrc",
        "/Users/me/workshop/x",
        "/Users/me",
        "/private/tmp/x",
        "/usr/bin/env",
        "/private/etc/passwd",
    ):
        assert not allowed(profile, "file-write-create", path) and not allowed(profile, "file-write-data", path)
    assert allowed(profile, "file-write-data", "/dev/fd/2") and allowed(profile, "file-read-data", "/dev/fd/63")
    assert allowed(profile, "file-write-data", "/dev/null") and not allowed(profile, "file-write-data", "/dev/disk0")
    assert not allowed(seatbelt.profile(FOLDER, HOME, writable=False), "file-write-data", f"{FOLDER}/x")


def test_other_files_of_the_user_cannot_be_read():
    profile = seatbelt.profile(FOLDER, HOME, ["/Users/me/.venv"])
    for path in UNREADABLE:
        assert not allowed(profile, "file-read-data", path) and not allowed(profile, "file-read-metadata", path)
    for path in ("/usr/lib/libSystem.B.dylib", "/bin/sh", "/Users/me/.venv/bin/python", f"{FOLDER}/a.so"):
        assert allowed(profile, "file-read-data", path) and allowed(profile, "file-map-executable", path)
    assert allowed(profile, "file-read-metadata", "/Users/me") and not allowed(profile, "file-read-data", "/Users/me")
    assert not allowed(profile, "file-write-data", "/Users/me/.venv/bin/python")


def test_the_network_and_other_programs_are_out_of_reach():
    profile = seatbelt.profile(FOLDER, HOME)
    for operation, at in BEYOND:
        assert not allowed(profile, operation, at), operation
    assert (
        allowed(profile, "signal", "same-sandbox")
        and allowed(profile, "process-exec")
        and allowed(profile, "process-fork")
    )
    with_network = seatbelt.profile(FOLDER, HOME, network=True)
    assert allowed(with_network, "network-outbound", "remote") and allowed(
        with_network, "network-outbound", seatbelt.RESOLVER
    )
    assert not allowed(with_network, "network-outbound", "/private/tmp/ssh-agent.socket")
    assert not allowed(with_network, "mach-lookup", "com.apple.coreservices.launchservicesd")
    assert not allowed(with_network, "file-read-data", "/Users/me/.ssh/id_rsa")


def test_what_programs_trust_is_neither_written_nor_moved_away_with_its_folder():
    kept = [f"{FOLDER}/sub/deep/.git", f"{FOLDER}/.envrc"]
    profile = seatbelt.profile(FOLDER, HOME, read_only=kept)
    for path in (*kept, f"{kept[0]}/hooks/x"):
        assert not allowed(profile, "file-write-data", path) and not allowed(profile, "file-write-unlink", path)
        assert allowed(profile, "file-read-data", path)
    for path in (FOLDER, f"{FOLDER}/sub", f"{FOLDER}/sub/deep"):
        assert not allowed(profile, "file-write-unlink", path) and allowed(profile, "file-write-create", f"{path}/new")
    assert allowed(profile, "file-write-unlink", f"{FOLDER}/sub/other")


@pytest.mark.parametrize("path", NASTY)
def test_a_path_is_one_string_whatever_is_in_it(path):
    profile = seatbelt.profile(path, HOME, read_only=[f"{path}/.git"])
    assert allowed(profile, "file-write-data", f"{path}/x") and not allowed(
        profile, "file-write-data", f"{path}/.git/x"
    )
    assert not allowed(profile, "file-write-data", "/Users/me/other") and not allowed(
        profile, "network-outbound", "remote"
    )
    assert [(rule[0], *rule[1:2]) for rule in read(profile)][:2] == [("version", "1"), ("deny", "default")]
    assert {rule[0] for rule in read(profile)} == {"version", "allow", "deny"}
    with pytest.raises(ValueError):
        seatbelt.quoted("a\0b")


@pytest.fixture
def macos(monkeypatch, tmp_path):
    """What a run is on macOS, with a program in place of sandbox-exec that keeps the profile and enforces nothing."""
    program = tmp_path / "sandbox-exec"
    program.write_text(
        f'#!/bin/sh\ntest "$1" = -p && printf %s "$2" > {shlex.quote(str(tmp_path))}/profile\nshift 2\nexec "$@"\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(seatbelt, "PROGRAM", str(program))
    monkeypatch.setattr(sandbox, "MACOS", True)
    monkeypatch.setattr(sandbox, "name", lambda: "sandbox-exec")
    monkeypatch.setattr(process, "LINUX", False)
    monkeypatch.setattr(started, "LINUX", False)
    sandbox.missing.cache_clear()
    (tmp_path / "work").mkdir()
    yield tmp_path
    sandbox.missing.cache_clear()


def test_a_run_has_the_profile_of_its_workspace(macos):
    work = macos / "work"
    (work / ".git").mkdir()
    (work / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    assert sandbox.trouble(work) == ""
    script = "echo out > new; mkdir .vscode; echo $HOME; ulimit -c -n; test $HOME = $TMPDIR"
    done = sandbox.run(["bash", "-c", script], work, Limits(open_files=99))
    home, *limits = done.text.splitlines()
    assert (
        done.status == 0
        and "disarmed" in done.note
        and (work / ".vscode.disarmed").is_dir()
        and limits[0].endswith("0")
    )
    assert limits[1].endswith("99") and not os.path.exists(home)
    profile = (macos / "profile").read_text()
    assert allowed(profile, "file-write-data", str(work / "new")) and allowed(profile, "file-write-data", f"{home}/x")
    assert not allowed(profile, "file-write-data", str(work / ".git" / "config"))


def test_what_a_run_leaves_is_ended_though_no_sandbox_ends_it(macos):
    script = "sleep 600 & (setsid sleep 600 &) ; setsid env -u V4_RUN sleep 600 & sleep 1; "
    script += "ps -eo pid,args | grep '[s]leep 600'"
    done = sandbox.run(["bash", "-c", script], macos / "work", Limits(seconds=20))
    pids = [int(line.split()[0]) for line in done.text.splitlines() if "sleep 600" in line]
    assert len(pids) >= 3 and not any(os.path.exists(f"/proc/{pid}/cwd/.") for pid in pids)


def test_where_the_system_refuses_the_profile_every_program_is_asked_about(macos):
    (macos / "sandbox-exec").write_text("#!/bin/sh\necho 'sandbox-exec: profile refused' >&2\nexit 65\n")
    assert sandbox.missing() == "sandbox-exec does not work here (sandbox-exec: profile refused)"
    os.unlink(macos / "sandbox-exec")
    sandbox.missing.cache_clear()
    assert "is not there" in sandbox.missing()
