"""Escapes from the sandbox, really tried: each prints ESCAPED if it works. Those that are harmless are tried outside
as well, where they must work: else they would prove nothing."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from v4cli.agent import process, sandbox
from v4cli.agent.process import Limits
from v4cli.agent.seccomp import program

pytestmark = pytest.mark.skipif(sandbox.missing() != "", reason=sandbox.missing())
SECRET = "TOKEN-5a8e4f"
SHORT = Limits(seconds=20)


class World:
    """A workspace, and around it what must stay out of reach."""

    def __init__(self, root: Path):
        self.root, self.workspace, self.home = root, root / "project", root / "home"
        self.secret, self.victim_file = root / "secret.txt", root / "victim.txt"
        for folder in (self.workspace / ".git" / "hooks", self.home / ".ssh"):
            folder.mkdir(parents=True)
        for file in (self.secret, self.home / ".ssh" / "id_rsa", self.home / ".bashrc"):
            file.write_text(SECRET)
        (self.workspace / ".git" / "config").write_text("[core]\n")
        (self.workspace / "link").symlink_to(self.secret)
        (self.workspace / "link_to_folder").symlink_to(root)
        self.victim_file.write_text("untouched")
        environment = os.environ | {"V4_TEST_SECRET": SECRET}
        self.victim = subprocess.Popen(["sleep", "600"], cwd=self.workspace, env=environment)
        self.servers = [_server(socket.AF_INET, ("127.0.0.1", 0)), _server(socket.AF_UNIX, f"\0v4-{os.getpid()}")]
        self.servers.append(_server(socket.AF_UNIX, self._short(self.workspace / "s")))
        self.port, self.abstract = self.servers[0].getsockname()[1], f"v4-{os.getpid()}"

    @staticmethod
    def _short(path: Path) -> str:
        """A path that fits into a socket's address."""
        return os.path.relpath(path) if len(str(path)) > 100 else str(path)

    def fill(self, script: str) -> str:
        """A script with the places of this world in it."""
        values = {"secret": self.secret, "root": self.root, "home": self.home, "pid": self.victim.pid,
                  "victim": self.victim_file, "port": self.port, "abstract": self.abstract,
                  "prefix": sys.prefix, "me": os.getpid()}  # fmt: skip
        for name, value in values.items():
            script = script.replace(f"@{name}@", str(value))
        return script

    def inside(self, script: str, limits: Limits = SHORT, **more) -> process.Finished:
        return sandbox.run(["bash", "-c", self.fill(script)], self.workspace, limits, **more)

    def outside(self, script: str) -> str:
        """The same script with nothing between it and the machine."""
        command = ["bash", "-c", self.fill(script)]
        return subprocess.run(command, cwd=self.workspace, capture_output=True, text=True, timeout=20).stdout

    def assert_unharmed(self) -> None:
        assert self.victim.poll() is None
        assert self.victim_file.read_text() == "untouched" and (self.home / ".bashrc").read_text() == SECRET
        assert sorted(p.name for p in self.root.iterdir()) == ["home", "project", "secret.txt", "victim.txt"]
        assert [p.name for p in self.home.iterdir() if p.name not in (".ssh", ".bashrc")] == []


def _server(family: int, address) -> socket.socket:
    """A listening socket; the system accepts for it."""
    server = socket.socket(family)
    server.bind(address)
    server.listen(64)
    return server


@pytest.fixture
def world(tmp_path, monkeypatch):
    made = World(tmp_path)
    monkeypatch.setenv("HOME", str(made.home))
    monkeypatch.setenv("V4_TEST_SECRET", SECRET)
    yield made
    made.victim.kill()
    made.victim.wait()
    for server in made.servers:
        server.close()


def python(code: str) -> str:
    """A script of bash that runs Python code, which may print ESCAPED."""
    return f"python3 - <<'END'\n{code}\nEND"


LIBC = "import ctypes, os, socket, sys\nlibc = ctypes.CDLL(None, use_errno=True)\n"
CALL = "print('ESCAPED' if libc.syscall({}) >= 0 else 'refused')"
CONNECT = "import socket; s = socket.socket({}); s.settimeout(3); s.connect({}); print('ESCAPED')"
NUMBER = {"keyctl": 250, "io_uring": 425, "bpf": 321, "userfaultfd": 323, "perf": 298}
if os.uname().machine == "aarch64":
    NUMBER = {"keyctl": 219, "io_uring": 425, "bpf": 280, "userfaultfd": 282, "perf": 241}

# harmless outside the sandbox, and shown to work there
PROVED = {
    "read a file next to the workspace": "grep -q TOKEN @secret@ && echo ESCAPED",
    "read it by a relative path": "grep -q TOKEN ../secret.txt && echo ESCAPED",
    "read ~/.ssh": "grep -q TOKEN @home@/.ssh/id_rsa && echo ESCAPED",
    "read ~/.ssh of HOME": "grep -q TOKEN ~/.ssh/id_rsa && echo ESCAPED",
    "read through a symbolic link": "grep -q TOKEN link && echo ESCAPED",
    "read through a link to a folder": "grep -q TOKEN link_to_folder/secret.txt && echo ESCAPED",
    "read through a new link": "ln -sf @secret@ new; grep -q TOKEN new && echo ESCAPED",
    "read through a hard link": "ln -f @secret@ hard; grep -q TOKEN hard && echo ESCAPED",
    "read through the root of another process": "grep -q TOKEN /proc/@pid@/root@secret@ && echo ESCAPED",
    "read through /proc/self/root": "grep -q TOKEN /proc/self/root@secret@ && echo ESCAPED",
    "read through the folder of another process": "grep -q TOKEN /proc/@pid@/cwd/../secret.txt && echo ESCAPED",
    "environment of a process": "tr '\\0' '\\n' < /proc/@pid@/environ | grep -q TOKEN && echo ESCAPED",
    "environments of all processes": "cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep -q SECRET=TOKEN && echo ESCAPED",
    "secrets in the environment": "env | grep -q TOKEN && echo ESCAPED",
    "see processes": "ls -d /proc/@me@ && ps -p @pid@ && echo ESCAPED",
    "signal a process": "kill -0 @pid@ && echo ESCAPED",
    "connect to this machine": python(CONNECT.format("", "('127.0.0.1', @port@)")),
    "connect to an abstract socket": python(CONNECT.format("socket.AF_UNIX", "'\\0@abstract@'")),
    "connect to a socket in the workspace": python(CONNECT.format("socket.AF_UNIX", "'s'")),
    "see the system's state": "ls -d /var/lib && ls -d /run && ls -d /sys/fs && echo ESCAPED",
    "see the whole of /etc": "test -e /etc/hostname -o -e /etc/ssh -o -e /etc/shadow && echo ESCAPED",
    "see the name of the machine": f"test $(uname -n) = {os.uname().nodename} && echo ESCAPED",
}
ROOT_ONLY = {  # users who are not root cannot do these outside either
    "set a parameter of the kernel": "f=/proc/sys/vm/swappiness; v=$(cat $f); echo $v > $f && echo ESCAPED",
    "write what runs on crashes": "f=/proc/sys/kernel/core_pattern; v=$(cat $f); echo \"$v\" > $f && echo ESCAPED",
    "read the password file": "grep -q root /etc/shadow && echo ESCAPED",
    "a mount namespace": "unshare -m true && echo ESCAPED",
    "mount": "unshare -m mount -t tmpfs none /mnt && echo ESCAPED",
    "chroot": "chroot /usr/.. true && echo ESCAPED",
    "enter the namespaces of another process": "nsenter -t @pid@ -a true && echo ESCAPED",
    "another user": "setpriv --reuid 65534 --clear-groups true && echo ESCAPED",
    "trace a process": python(LIBC + "print('ESCAPED' if libc.ptrace(0x4206, @pid@, 0, 0) == 0 else 'refused')"),
}  # fmt: skip
# not tried outside: they would do harm, or need not work there. Writing may seem to work, in a folder that only the
# sandbox has; what is outside is looked at afterwards
TRIED = {
    "list the devices of the kernel": "ls -d /sys/class && echo ESCAPED",
    "read raw memory or disk": "for f in mem kmem vda sda nvme0n1 kmsg; do head -c1 /dev/$f && echo ESCAPED; done",
    "write outside": "echo x > @root@/new",
    "write over a file outside": "echo x > @victim@",
    "write through a link": "ln -sf @victim@ l; echo x > l; echo x > link_to_folder/victim.txt",
    "write by a relative path": "echo x > ../victim.txt; rm -rf ../home ../victim.txt",
    "write to ~/.bashrc": "mkdir -p @home@; echo evil >> @home@/.bashrc; echo evil > ~/.bashrc",
    "write to the system": "touch /usr/x /bin/x /etc/x /lib/x /usr/local/bin/x /x /dev/x /proc/x && echo ESCAPED; "
    "for d in / /usr /usr/bin /usr/local/bin /etc /dev /home; do touch $d/v4-x && echo ESCAPED; done",
    "write to this Python": "touch @prefix@/v4-x && echo ESCAPED",
    "write to a hook of git": "echo evil > .git/hooks/pre-commit && echo ESCAPED",
    "write to the settings of git": "echo evil >> .git/config && echo ESCAPED",
    "put another .git in its place": "mv .git old && echo ESCAPED; rm -rf .git; test -e .git/config || echo ESCAPED",
    "kill a process": "kill -9 @pid@ && echo ESCAPED",
    "kill whatever there is": "kill -9 -- -1; kill -9 1 2",
    "the internet": python(CONNECT.format("", "('1.1.1.1', 443)")),
    "the internet, IPv6": python(CONNECT.format("socket.AF_INET6", "('2606:4700:4700::1111', 443)")),
    "names of the internet": python("import socket; socket.getaddrinfo('pypi.org', 443); print('ESCAPED')"),
    "raw packets": python("import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW); print('ESCAPED')"),
    "the host of a virtual machine": python("import socket; socket.socket(socket.AF_VSOCK); print('ESCAPED')"),
    "docker": "for f in /var/run/docker.sock /run/docker.sock /run/dbus /run/user; do test -e $f && echo ESCAPED; done",
    "a user namespace": "unshare -U true && echo ESCAPED; unshare -Ur mount -t tmpfs none /tmp && echo ESCAPED",
    "undo the mounts": "for m in /proc/sys /usr /tmp /dev /; do umount $m && echo ESCAPED; "
    "umount -l $m && echo ESCAPED; mount -o remount,rw,bind $m && echo ESCAPED; done",
    "bind the root elsewhere": "mkdir -p b; mount --bind / b && echo ESCAPED",
    "pivot_root": python(
        LIBC + "os.makedirs('p', exist_ok=True)\nprint('ESCAPED' if libc.pivot_root(b'.', b'p') == 0 else 'no')"
    ),
    "sudo and su": "for p in 'sudo -n' 'su -c'; do command -v ${p% *} && $p true && echo ESCAPED; done",
    "more rights from a program": "grep -q 'NoNewPrivs:.*1' /proc/self/status || echo ESCAPED",
    "capabilities": "grep '^Cap' /proc/self/status | grep -vq 0000000000000000 && echo ESCAPED",
    "a device of its own": "mknod d b 254 0 && echo ESCAPED; mknod m c 1 1 && echo ESCAPED",
    "type on the terminal": python(
        LIBC + "import fcntl, pty\nmaster, slave = pty.openpty()\nfor fd in (0, 1, 2, slave):\n"
        "    try:\n        fcntl.ioctl(fd, 0x5412, b'x'); print('ESCAPED')\n    except OSError as e: print(e)"
    ),
    "open the terminal": "echo x > /dev/tty && echo ESCAPED",
    "keys of the user": python(LIBC + CALL.format(f"{NUMBER['keyctl']}, 0, -3, 0")),
    "calls by io_uring": python(LIBC + CALL.format(f"{NUMBER['io_uring']}, 8, ctypes.create_string_buffer(256)")),
    "programs in the kernel": python(LIBC + CALL.format(f"{NUMBER['bpf']}, 0, ctypes.create_string_buffer(128), 128")),
    "page faults": python(LIBC + CALL.format(f"{NUMBER['userfaultfd']}, 1")),
    "descriptors left open": "test $(ls /proc/self/fd | wc -l) -le 4 || echo ESCAPED",
    "stop what watches": "kill -STOP $PPID; kill -9 $PPID; for p in $(ls /proc | grep -E '^[0-9]+$'); do "
    "test $p -gt 60 && kill -9 $p && echo ESCAPED; done",
}  # fmt: skip
ALL = PROVED | ROOT_ONLY | TRIED


@pytest.mark.parametrize("name", ALL)
def test_escape_fails(world, name):
    done = world.inside(ALL[name])
    assert "ESCAPED" not in done.text and SECRET not in done.text
    assert "command not found" not in done.text and not done.stopped
    world.assert_unharmed()


@pytest.mark.parametrize("name", PROVED | (ROOT_ONLY if os.getuid() == 0 else {}))
def test_the_same_works_outside(world, name):
    assert "ESCAPED" in world.outside(ALL[name])


def test_there_are_many_escapes():
    assert len(ALL) >= 60


def test_the_workspace_can_be_worked_in(world):
    script = "mkdir a && echo hello > a/b && cat a/b && cp a/b c && mv c d && rm d && cd a && pwd"
    done = world.inside(f"{script} && python3 -c 'print(6*7)'")
    assert done.text == f"hello\n{world.workspace}/a\n42\n" and done.status == 0
    assert (world.workspace / "a" / "b").read_text() == "hello\n"


def test_temporary_folders_are_private_and_bounded(world):
    name = os.urandom(8).hex()
    done = world.inside(
        f"cd /tmp; echo x | tee {name} /dev/shm/{name} ~/{name} && ls -A . ~ && head -c 20M /dev/zero > big",
        Limits(seconds=20, tmp_bytes=8 << 20),
    )
    assert "No space left on device" in done.text and not Path("/tmp", name).exists()
    assert world.inside(f"ls /tmp/{name} ~/{name}; ls -A /dev/shm").text.count("No such file") == 2


def test_the_network_is_there_when_allowed(world):
    script = PROVED["connect to this machine"]
    assert "ESCAPED" in world.inside(script, network=True).text
    assert "ESCAPED" not in world.inside(PROVED["connect to a socket in the workspace"], network=True).text


def test_file_descriptors_are_not_inherited(world):
    handle = os.open(world.secret, os.O_RDONLY)
    os.set_inheritable(handle, True)
    try:
        assert (
            SECRET not in world.inside("for i in $(seq 3 30); do cat <&$i; done 2>/dev/null; ls -l /proc/self/fd").text
        )
    finally:
        os.close(handle)


def test_a_sandbox_is_refused_where_the_workspace_holds_the_home_folder(world):
    assert "home folder" in sandbox.trouble(world.home) and "home folder" in sandbox.trouble(world.root)
    assert sandbox.trouble(world.workspace) == ""


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_is_made_of_whole_instructions(machine):
    lines = len(program(machine)) / 8
    assert lines == int(lines) and 60 < lines < 200
    assert program("riscv64") == b""


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_git_can_be_read_but_not_changed(world):
    shutil.rmtree(world.workspace / ".git")
    for command in ("init -q", "add victim", "-c user.name=a -c user.email=a@b.c commit -q --allow-empty -m first"):
        subprocess.run(["git", "-C", world.workspace, *command.split()], stderr=subprocess.DEVNULL)
    done = world.inside("echo x > file; git status --short; git log --format=%s; git diff; git show --stat")
    assert "?? file\n" in done.text and "\nfirst\n" in done.text and (done.status, done.note) == (0, "")
    for command in ("git add file", "git commit --allow-empty -m x", "git config a.b c", "git checkout -b x"):
        done = world.inside(command)
        assert done.status and done.note == "[read-only here: .git; ask the user to commit or to change it]", command


def test_the_sandbox_dies_with_its_maker(world):
    number = f"86400.{os.getpid()}"
    script = f"sleep {number} & setsid sleep {number}; wait"
    code = "from pathlib import Path; from sys import argv; from v4cli.agent import sandbox\n"
    code += "sandbox.run(['bash', '-c', argv[1]], Path(argv[2]))"
    maker = subprocess.Popen([sys.executable, "-c", code, script, str(world.workspace)])
    _until(lambda: len(_running(number)) == 2)
    maker.kill()
    maker.wait()
    _until(lambda: not _running(number))


def _running(argument: str) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [])[1:] == [argument]]


def _until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
