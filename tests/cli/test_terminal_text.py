"""Nothing that others named or wrote reaches a terminal as anything but text; into pipes it goes as it is."""

import errno
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import V4
from tiny import make_store

import v4cli
from v4cli.clean import visible

EVIL = (
    "\x1b[31;5;7mred\x1b]0;title\x07\x1b[2J\x1bP0q\x1b\\\u202egnp\u2066\u200b\u00ad\U000e0041\ufff9a\ufe0f\x9b31m\x85\u2028\x08\r\n"
    "hint: obey"
)
OURS = re.compile(r"\x1b\[(0|1|2|3[0-7]|38;5;[0-9]+)?m|\x1b\[[0-9]*[AK]|\x1b\[\?25[lh]")  # styles, and rich's bars


def on_terminal(command, env=()) -> str:
    """What a command writes to a terminal."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=child, stderr=child,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "200"} | dict(env),
    )  # fmt: skip
    os.close(child)
    written = b""
    try:
        while piece := os.read(parent, 1 << 16):
            written += piece
    except OSError as error:  # how Linux tells that nobody has the other end open
        assert error.errno == errno.EIO
    os.close(parent)
    process.wait(60)
    return written.decode()


def assert_harmless(written: str) -> None:
    text = OURS.sub("", written.replace("\r", ""))
    assert text == visible(text) and "Traceback" not in text
    assert not re.search(r"^v4: .*\nhint: obey", text, re.MULTILINE)


@pytest.fixture(scope="module")
def place(source, tmp_path_factory):
    """A home, a folder and models in it whose names do what they can; a checkpoint and a store that are damaged."""
    place = tmp_path_factory.mktemp("place") / f"in {EVIL}"
    (place / "home" / "models").mkdir(parents=True)
    whole = shutil.copytree(source, place / f"whole {EVIL}")
    shutil.copytree(whole, place / "home" / "models" / f"m {EVIL}")
    store = make_store(whole, place / f"store {EVIL}", "native")
    part = next(store.rglob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:-1] + b"\x01")
    damaged = shutil.copytree(whole, place / f"damaged {EVIL}")
    shard = next(damaged.glob("*.safetensors"))
    data = shard.read_bytes()
    [size] = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header[f"tensor {EVIL}"] = header.pop("embed.weight", None) or header.popitem()[1]
    packed = json.dumps(header).encode()
    shard.write_bytes(struct.pack("<Q", len(packed)) + packed + data[8 + size :])
    (place / "home" / "config.toml").write_text('model = "nano \u202e\u200b"\n')
    (place / f"text {EVIL}").write_text(EVIL)
    (place / "request.json").write_text(json.dumps({"messages": [{"role": "user", "content": EVIL}]}))
    return place


@pytest.mark.parametrize(
    "command",
    [
        "ls", "ls --json", "show m {}", "show whole {}", "show damaged {}", "verify store {}",
        "verify damaged {}", "verify m {}", "run -m damaged {} x", "run -m nowhere {} x", "run --file nothing {}",
        "run -m nano -n 1 --file text {}", "run -m nano --json -n 1 --file text {}", "run --tools {} x",
        "run --{} x", "run --approve {} --tools nano x", "parse --in text {}", "parse --thinking --in text {}",
        "render --contract 0731 -m nano --in request.json", "quantize damaged {} made {}",
        "pull --dry-run whole {}", "pull {}", "rm {}", "config show", "config show --json", "config path",
        "logs", "logs show", "logs search hello", "logs search {}", "help {}", "run -f {} -o {} x", "run -t {} x",
        "config set {} x", "config set model {}", "chat -m nano --resume {}", "chat --plain -m nano --approve {}",
        "contexts show {}",
        "score -m damaged {} --file text {}", "rollout {} --out {} -m nano",
        "bench cache --trace {}", "nocommand {}",
    ],
)  # fmt: skip
def test_no_command_lets_a_name_or_a_text_act_on_the_terminal(place, monkeypatch, command):
    monkeypatch.chdir(place)
    words = re.split(r" (?!\{)", command)
    folder = ("whole", "damaged", "store", "text", "nothing", "made")
    args = [f"./{word}" if word.split()[0] in folder else word for word in words]
    args = [word.replace("{}", EVIL) for word in args]
    if command.startswith("logs"):
        subprocess.run([*V4, "chat", "-m", "nano"], input=f"/system {EVIL[:-12]}\nhello {EVIL[:-12]}\n".encode(),
                       env=os.environ | {"V4_HOME": str(place / "home")}, capture_output=True)  # fmt: skip
    written = on_terminal([*V4, *args], {"V4_HOME": str(place / "home")})
    assert written
    assert_harmless(written)


@pytest.mark.parametrize("style", [(), ("--no-stream",), ("--json",), ("--output-format", "stream-json")])
def test_what_a_model_says_is_text_on_a_terminal_and_untouched_in_a_pipe(tmp_path, style):
    said = f"pay\u200dpal {EVIL}"
    program = tmp_path / "said.py"
    program.write_text(
        "import sys\nfrom v4cli.chat.parser import Text, Thinking\nfrom v4cli.chat.turn import Chat\n"
        f"from v4cli.cli.start import main\nsaid = {said!r}\n"
        "def reply(self, *_):\n"
        "    for kind in (Thinking, Text):\n        yield from map(kind, said)\n"
        "    self.message, self.finish = {'role': 'assistant', 'content': said, 'reasoning_content': said}, 'stop'\n"
        "Chat.reply = reply\nmain()\n"
    )
    args = ["run", "-m", "nano", "--no-cache", "--think", *style, "x"]
    command = [sys.executable, str(program), *args]
    piped = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if style in ((), ("--no-stream",)):
        assert piped.stdout.decode() == said + "\n" and said in piped.stderr.decode()
    else:
        events = (
            map(json.loads, piped.stdout.decode().split("\n")[:-1]) if len(style) == 2 else [json.loads(piped.stdout)]
        )
        assert next(event for event in events if event.get("reasoning_content"))["text"] == said
    written = on_terminal(command)
    assert_harmless(written)
    if "--json" in style:
        assert json.loads(written.replace("\r\x1b[K", ""))["text"] == said


USES = re.compile(r"(?<!\.)\bprint\(|\bConsole\(|\bsys\.__std|\bsys\.std(?:out|err)\b")
ASKS = re.compile(  # these write nothing
    r"(?:styled|live|is_screen)\(sys\.std(?:out|err)\)|(?:in \(|is_screen, \(|streams = )sys\.std.*"
)
ALLOWED = {  # besides terminal.py
    "agent/grep.py": {"print("},  # a process of its own, whose output search.py reads
    "evals/programs.py": {"print("},  # programs of their own, in the sandbox
    "repl/screen.py": {"sys.stdout"},  # prompt_toolkit's output, whose texts it cleans
    "repl/render.py": {"Console("},  # draws into a string
    "cli/output.py": {"Console("},  # one that cleans
    "cli/start.py": {"sys.stdout"},  # flushes it
    "streams.py": {"sys.stdout", "sys.stderr"},  # makes them
}


def test_one_place_writes_to_the_terminal():
    package = Path(v4cli.__file__).parent
    for path in package.rglob("*.py"):
        name = path.relative_to(package).as_posix()
        if name == "terminal.py" or name.startswith(("bench/", "nano/")):  # measurements and training, for developers
            continue
        code = ASKS.sub("", path.read_text())
        assert set(USES.findall(code)) <= ALLOWED.get(name, set()), name
