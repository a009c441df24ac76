"""What the user's programs obey unasked: read-only where it is there, disarmed where it is new, refused to write_file;
and what else a run may not leave in the workspace."""

import os
import pwd
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from v4cli.agent import files, guard, outside, sandbox, trusted
from v4cli.agent.guard import Guard
from v4cli.agent.process import Limits
from v4cli.agent.sandbox import Access
from v4cli.agent.tools import Context, ToolError

in_sandbox = pytest.mark.skipif(sandbox.missing() != "", reason=sandbox.missing())
SHORT = Limits(seconds=60)
NAMES = [name for names in trusted.NAMES.values() for name in names if name != "git~1"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    made = tmp_path / "home"
    made.mkdir()
    monkeypatch.setenv("HOME", str(made))
    monkeypatch.delenv("V4_HOME", raising=False)
    return made


@pytest.fixture
def work(tmp_path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def run(folder: Path, script: str, limits: Limits = SHORT, **more):
    return sandbox.run(["bash", "-c", script], folder, limits, **more)


def refused(folder: Path, path: str) -> bool:
    """Whether write_file refuses a path; it writes it if not."""
    try:
        files.write_file({"path": path, "content": "x\n"}, Context(folder))
    except ToolError as error:
        assert "would obey it unasked" in str(error)
        return True
    return False


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


ODD = ["x.code-workspace", "deep/er/.envrc", ".ENVRC", ".vscode/tasks.json", ".direnv/profile.rc", ".g\u200cit/config"]


@pytest.mark.parametrize("name", [*NAMES, *ODD])
def test_what_is_obeyed_is_not_written(work, name):
    assert refused(work, name) and tree(work) == []
    with pytest.raises(ToolError, match="unasked"):
        files.preview_write({"path": name, "content": ""}, Context(work))


ORDINARY = ["Makefile", "conftest.py", "package.json", ".gitignore", ".gitattributes", ".github/x.yml", "git/x", ".env"]
ORDINARY += ["model.pth", "src/HEAD", "refs/heads", "x.git/config", ".vscodeignore"]


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_files_are_written(work, name):
    assert not refused(work, name)


@in_sandbox
def test_what_is_new_is_disarmed(work):
    script = "; ".join(f"mkdir -p a/{n}; echo x > a/{n}.x; echo x > {name}" for n, name in enumerate(NAMES))
    done = run(work, script + "; mkdir -p a/.vscode; echo x > a/.vscode/tasks.json; mkfifo pipe")
    assert sorted(os.listdir(work)) == sorted(["a", *(f"{name}.disarmed" for name in NAMES)])
    assert (work / "a/.vscode.disarmed/tasks.json").read_text() == "x\n"
    assert "would obey it unasked" in done.note and " and " in done.note and ".envrc" in run(work, "echo > .envrc").note
    assert (work / ".envrc.disarmed-2").exists()


@in_sandbox
def test_what_is_there_is_read_only(work):
    for name in NAMES:
        (work / name).write_text("mine\n")
    (work / "sub").mkdir()
    (work / "sub" / ".envrc").write_text("mine\n")
    script = "; ".join(f"echo evil > {name}; rm -f {name}; mv evil {name}" for name in [*NAMES, "sub/.envrc"])
    done = run(work, f"{script}; echo x > free")
    assert all((work / name).read_text() == "mine\n" for name in [*NAMES, "sub/.envrc"])
    assert (work / "free").exists() and "ask the user to commit or to change it" in done.note
    assert run(work, "mv sub other; mkdir sub; echo evil > sub/.envrc").note
    assert (work / "other/.envrc").read_text() == "mine\n" and not (work / "sub/.envrc").exists()


@in_sandbox
def test_links_of_the_user_that_lead_nowhere_stay(work):
    (work / ".envrc").symlink_to("env/rc")
    (work / ".git").symlink_to(work.parent / "elsewhere")
    assert run(work, "true").note == "" and os.path.islink(work / ".envrc") and os.path.islink(work / ".git")
    run(work, "mkdir env; echo evil > env/rc")
    run(work, "mkdir -p e env2; echo evil > e/rc; mv env x; ln -s e env")
    assert not (work / ".envrc").exists()


@in_sandbox
def test_environments_that_are_there_are_read_only_and_new_ones_are_free(work):
    for folder in (".venv/bin", "env/bin", "env/lib/python3/site-packages"):
        (work / folder).mkdir(parents=True)
    (work / "env/pyvenv.cfg").touch()
    for path in (".venv/bin/python", "env/bin/python", "env/lib/python3/site-packages/x.pth", "env/pyvenv.cfg"):
        assert refused(work, path)
        assert "Read-only" in run(work, f"echo x > {path}").text
    assert refused(work, "vendor/site-packages/x.pth")
    done = run(work, "mkdir -p new/bin; touch new/pyvenv.cfg new/bin/python; ls new")
    assert done.note == "" and (work / "new/bin/python").exists()


@in_sandbox
def test_the_workspace_can_be_an_environment(work):
    (work / "bin").mkdir()
    (work / "pyvenv.cfg").touch()
    assert refused(work, "bin/python") and "Read-only" in run(work, "echo x > bin/python; echo x > main.py").text
    assert (work / "main.py").exists() and not refused(work, "main.py")


@in_sandbox
@pytest.mark.parametrize("inside", ["v4", "."])
def test_what_v4_keeps_in_the_workspace_is_read_only(work, inside, monkeypatch):
    monkeypatch.setenv("V4_HOME", str(work / inside))
    for name in ("config.toml", "state/approvals.json", "chats/x.json", "models/x/config.json", "cache/prefixes/x"):
        path = os.path.join(inside, name)
        run(work, f"mkdir -p {os.path.dirname(path)}; echo evil > {path}")
        assert refused(work, path) and not (work / path).exists()


@in_sandbox
def test_places_of_the_environment(work, monkeypatch):
    monkeypatch.setenv("PATH", f"{work}/bin:{work}:{os.environ['PATH']}")
    monkeypatch.setenv("BASH_ENV", f"{work}/env.sh")
    run(work, "mkdir bin; echo x > bin/ls; echo x > env.sh; echo x > free")
    assert sorted(os.listdir(work)) == ["bin.disarmed", "env.sh.disarmed", "free"]
    assert refused(work, "bin/ls") and refused(work, "env.sh") and not refused(work, "free")


@in_sandbox
def test_servers_that_v4_starts(work, monkeypatch, tmp_path):
    monkeypatch.setenv("V4_HOME", str(tmp_path / "v4"))
    (tmp_path / "v4").mkdir()
    servers = {"a": ("", "tools/server"), "b": (work, "x/run.sh"), "c": (work / "sub", "serve.py")}
    lines = [f"[mcp.{n}]\ncommand = ['python3', '{what}']\ncwd = '{cwd or work}'" for n, (cwd, what) in servers.items()]
    (tmp_path / "v4/config.toml").write_text("\n".join(lines))
    (work / "x").mkdir()
    (work / "x/run.sh").write_text("mine\n")
    run(work, "mkdir tools sub; echo evil | tee tools/server x/run.sh sub/serve.py; echo x > free")
    assert (work / "x/run.sh").read_text() == "mine\n" and (work / "free").exists()
    assert sorted(os.listdir(work / "tools") + os.listdir(work / "sub")) == ["serve.py.disarmed", "server.disarmed"]
    assert refused(work, "tools/server") and refused(work, "x/run.sh") and not refused(work, "tools/other")


@in_sandbox
@pytest.mark.parametrize("place", [".envrc", ".vscode/tasks.json", ".venv/bin/python", ".husky/pre-commit"])
def test_other_names_of_what_is_obeyed(work, place):
    for name, connect in (("hard", os.link), ("soft", os.symlink)):
        (work / name / "a").mkdir(parents=True)
        (work / name / "a/file").write_text("mine\n")
        (work / name / place).parent.mkdir(parents=True, exist_ok=True)
        connect(work / name / "a/file", work / name / place)
        run(work, f"echo evil > {name}/a/file")
        assert (work / name / "a/file").read_text() == "mine\n"


@in_sandbox
def test_what_links_in_the_home_folder_lead_to(work, home):
    (work / "zsh").mkdir()
    (work / "zsh/rc").write_text("mine\n")
    (home / ".zshrc").symlink_to(work / "zsh/rc")
    (home / ".config").mkdir()
    (home / ".config/nvim").symlink_to(work / "nvim")
    (home / ".config/fish").mkdir()
    (home / ".config/fish/config.fish").symlink_to(work / "fish.fish")
    run(work, "echo evil > zsh/rc; mkdir nvim; echo evil > nvim/init.lua; echo evil > fish.fish")
    assert not (work / "fish.fish").exists()
    assert (work / "zsh/rc").read_text() == "mine\n" and not (work / "nvim").exists()
    assert refused(work, "nvim/init.lua") and refused(work, "zsh/rc")


def test_hidden_files_of_a_home_folder_that_is_the_workspace(home):
    assert refused(home, ".ssh/config") and refused(home, ".config/x") and not refused(home, "notes.txt")
    (home / "proj").mkdir()
    assert not refused(home / "proj", ".x/y")


@in_sandbox
@pytest.mark.parametrize("mode", ["000", "111", "311", "500"])
def test_a_folder_that_is_closed_is_looked_into(work, mode):
    run(work, f"mkdir -p a/b; echo x > a/b/.envrc; chmod {mode} a/b a")
    for folder in ("a", "a/b"):
        os.chmod(work / folder, 0o700)
    assert not (work / "a/b/.envrc").exists()


@in_sandbox
def test_a_folder_deeper_than_a_path_may_be_long(work):
    code = "import os\nfor _ in range(60):\n    os.mkdir('d' * 200); os.chdir('d' * 200)\n"
    done = run(work, f"python3 -c \"{code}open('.envrc', 'w')\nos.mkdir('.git')\"")
    assert ".envrc" in done.note and ".git" in done.note
    handle = os.open(work, os.O_RDONLY)
    for _ in range(60):
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    assert sorted(os.listdir(handle)) == [".envrc.disarmed", ".git.disarmed"]
    os.close(handle)
    subprocess.run(["rm", "-rf", work], check=True)


@in_sandbox
def test_handles_are_given_back(work):
    n = len(os.listdir("/proc/self/fd"))
    test_a_folder_deeper_than_a_path_may_be_long(work)
    assert len(os.listdir("/proc/self/fd")) == n


@in_sandbox
def test_names_are_told_on_one_line(work):
    note = run(work, "mkdir $'a\\n\\x1b[31mb'; touch $'a\\n\\x1b[31mb/.envrc'").note
    assert "a␊␛[31mb/.envrc (now .envrc.disarmed)" in note and "\n" not in note


@in_sandbox
def test_no_fifo_and_no_socket_is_left(work):
    os.mkfifo(work / "mine")
    code = "import os, stat\nos.mkfifo('f')\nos.mknod('s', stat.S_IFSOCK | 0o600)\nos.mknod('r', stat.S_IFREG | 0o600)"
    run(work, f'python3 -c "{code}"; mkfifo d; ls')
    assert sorted(os.listdir(work)) == ["mine", "r"]


SET_ID = {
    "chmod": "os.chmod('f', 0o4755)", "chmod, group": "os.chmod('f', 0o2755)",
    "fchmod": "os.fchmod(f.fileno(), 0o6755)", "open": "os.open('g', os.O_CREAT | os.O_WRONLY, 0o4755)",
    "mknod": "os.mknod('g', 0o104755)",
    "a temporary file": "os.open('.', os.O_TMPFILE | os.O_WRONLY, 0o4755)", "a device": "os.mknod('g', 0o020600, 0)",
    "creat": "call(85, b'g', 0o4755)", "old chmod": "call(90, b'f', 0o4755)",
    "old open": "call(2, b'g', 0o101, 0o4755)",
    "fchmodat2": "call(452, -100, b'f', 0o4755, 0)",
    "openat2": "call(437, -100, b'g', struct.pack('QQQ', 0o101, 0o4755, 0), 24)",
    "capabilities": "os.setxattr('f', 'security.capability', struct.pack('IIIII', 0x02000001, 1 << 10, 0, 0, 0))",
}  # fmt: skip
CALL = """import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    if libc.syscall(*arguments) < 0: raise OSError(ctypes.get_errno(), 'refused')
os.umask(0)
f = open('f', 'w')
try:
    {}
    print('ESCAPED')
except OSError as error: print(error)
"""


@in_sandbox
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of calls on x86_64")
@pytest.mark.parametrize("way", SET_ID)
def test_nothing_is_left_that_gives_rights(work, way):
    done = sandbox.run(["python3", "-c", CALL.format(SET_ID[way])], work, Limits(seconds=60), access=Access.OWN)
    assert "ESCAPED" not in done.text and done.text.strip()
    modes = [path.stat().st_mode for path in work.iterdir()]
    assert not any(mode & (stat.S_ISUID | stat.S_ISGID) or stat.S_ISCHR(mode) for mode in modes)


@in_sandbox
def test_ordinary_permissions_can_be_set(work):
    done = run(
        work, "touch f && chmod 1777 f && chmod 644 f && install -m 755 f g && cp -p g h && mktemp -p . && stat -c %a g"
    )
    assert done.status == 0 and done.text.endswith("755\n")


MEMORY = {
    "memfd": "fd = os.memfd_create('x'); [os.write(fd, bytes(1 << 20)) for _ in range(400)]",
    "many memfds": "fds = [os.memfd_create('x') for _ in range(40)]; [os.write(f, bytes(10 << 20)) for f in fds]",
    "a temporary file": "f = open('/tmp/x', 'wb'); [f.write(bytes(1 << 20)) for _ in range(400)]; f.flush()",
    "shared memory": "f = open('/dev/shm/x', 'wb'); [f.write(bytes(1 << 20)) for _ in range(400)]; f.flush()",
}  # fmt: skip


@in_sandbox
@pytest.mark.parametrize("kind", MEMORY)
def test_files_in_memory_count_as_memory(work, kind):
    code = f"import os, time; {MEMORY[kind]}; time.sleep(60)"
    done = sandbox.run(["python3", "-c", code], work, Limits(seconds=60, memory_bytes=200 << 20))
    assert done.stopped == "it used more than 200 MiB of memory"


def test_memfds_count_without_a_sandbox_too(work, monkeypatch):
    monkeypatch.setattr(sandbox, "missing", lambda: "no")
    code = f"import os, time; {MEMORY['memfd']}; time.sleep(60)"
    done = sandbox.run(["python3", "-c", code], work, Limits(seconds=60, memory_bytes=200 << 20))
    assert done.stopped == "it used more than 200 MiB of memory"


@in_sandbox
def test_memory_that_belongs_to_nobody_is_small(work):
    code = "import ctypes; l = ctypes.CDLL(None); size = ctypes.c_size_t\n"
    code += "print([l.shmget(0, size(n), 0o1600) >= 0 for n in (4096, 65536, 65537, 1 << 33)])"
    assert run(work, f"python3 -c '{code}'").text == "[True, True, False, False]\n"


@in_sandbox
@pytest.mark.parametrize("access", [Access.WORK, Access.OWN])
@pytest.mark.parametrize(
    "make", ["open(str(n), 'w').close()", "os.mkdir(str(n))", "os.link('x', str(n))", "os.symlink('x', str(n))"]
)
def test_the_number_of_files_is_limited(work, access, make):
    for n in range(1000):
        (work / f"mine{n}").touch()
    code = f"import os, time\nopen('x', 'w')\nfor n in range(8000):\n    {make}\ntime.sleep(60)"
    done = sandbox.run(["python3", "-c", code], work, Limits(seconds=60, new_files=3000), access=access)
    assert done.stopped == "it made more than 3,000 files"
    assert (
        run(work, "for i in $(seq 900); do : > y$i; done; sleep 0.3", Limits(seconds=60, new_files=1000)).stopped == ""
    )


@in_sandbox
def test_a_workspace_that_is_only_read(work):
    done = run(work, "echo x > f; mkdir d", access=Access.READ)
    assert "Read-only" in done.text and tree(work) == []


@in_sandbox
def test_a_workspace_of_its_own_is_free(work):
    run(work, "mkdir .git; echo x > .envrc", access=Access.OWN)
    assert tree(work) == [".envrc", ".git"]
    assert files.write_file({"path": ".vscode/x", "content": ""}, Context(work, disposable=True))


@pytest.mark.parametrize("value", [None, "", "/", ".", "work", "/nonexistent"])
def test_the_real_home_is_protected_whatever_home_says(tmp_path, monkeypatch, value):
    real = tmp_path / "real"
    real.mkdir()
    entry = pwd.struct_passwd(("u", "x", os.getuid(), 0, "", str(real), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: entry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", value) if value is not None else monkeypatch.delenv("HOME")
    assert "home folder" in sandbox.trouble(real) and "home folder" in sandbox.trouble(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    assert "home folder" not in sandbox.trouble(tmp_path / "elsewhere")


def test_the_home_of_who_called_sudo_is_protected(tmp_path, monkeypatch):
    monkeypatch.setenv("SUDO_UID", "4711")
    entry = pwd.struct_passwd(("u", "x", 4711, 0, "", str(tmp_path / "caller"), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: entry)
    assert str(tmp_path / "caller") in outside.homes()


def test_no_passwd_entry_and_no_home(tmp_path, monkeypatch):
    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("HOME")
    assert outside.homes() == [] and "home" not in sandbox.trouble(tmp_path)


@pytest.mark.parametrize("inside", [".git", ".git/hooks", "bare", "bare/refs"])
def test_no_sandbox_in_what_git_keeps_for_itself(work, inside):
    for folder in (".git/hooks", "bare/refs"):
        (work / folder).mkdir(parents=True)
    (work / "bare/HEAD").touch()
    assert "git keeps for itself" in sandbox.trouble(work / inside) and refused(work / inside, "x")


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_git_that_runs_hooks_from_anywhere_is_refused(work):
    subprocess.run(["git", "init", "-q", work], check=True)
    subprocess.run(["git", "-C", work, "config", "core.hooksPath", "."], check=True)
    with pytest.raises(ToolError, match="change them"):
        Guard(str(work))


def test_a_workspace_is_bounded(work, monkeypatch):
    monkeypatch.setattr(guard, "MAX_ENTRIES", 3)
    for n in range(4):
        (work / str(n)).touch()
    with pytest.raises(ToolError, match="more than 3 files"):
        Guard(str(work))
    with pytest.raises(ToolError, match="interrupted"):
        Guard(str(work), lambda: True)


def test_without_git_the_rest_holds(work, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    (work / ".git").mkdir()
    assert Guard(str(work)).read_only == [str(work / ".git")]
