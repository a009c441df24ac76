"""Every command with arguments that make it work for a moment, and with some that keep it at work."""

import json
from pathlib import Path
from typing import NamedTuple

import typer

from v4cli.cli.app import app

NANO = Path(__file__).parents[2] / "v4cli" / "nano" / "checkpoint"


class Row(NamedTuple):
    """A quick call: its arguments, what it reads, its exit code, whether it prints; and a long one."""

    args: str
    stdin: bytes = b""
    code: int = 0
    prints: bool = True
    long: str = ""
    json: bool = False


LONG_RUN = "run -n 100000 --temp 50 --seed 1 'write a lot'"
REQUEST = b'{"messages": [{"role": "user", "content": "a"}]}'
COMMANDS = {
    "": Row("", b"hello", long="run -f {long}"),
    "run": Row("run --json -n 8 hello", json=True, long=LONG_RUN),
    "chat": Row("chat --plain --tools none", b"hello\n", long="chat --plain"),
    "rollout": Row(
        "rollout {tasks} --out {new} --tools calculator --max-tokens 8 --json", json=True,
        long="rollout {many} --out {new} --tools calculator --jobs 2 --temp 50",
    ),
    "serve": Row("serve nano --print-unit"),
    "launch": Row("launch nothing", code=2, prints=False),
    "ps": Row("ps --json", json=True),
    "stop": Row("stop 1", code=2, prints=False),
    "download": Row(f"download {NANO} --dry-run --json", json=True),
    "pull": Row(f"pull {NANO} --name mine --dry-run --json", json=True),
    "quantize": Row("quantize {nowhere} {new}", code=3, prints=False, long=f"quantize {NANO} {{new}}"),
    "eval": Row("eval quick nano --only ppl --json", json=True, long="eval nano --only ppl"),
    "calibrate": Row("calibrate nano --tokens 64 -o {new} --json", json=True, long="calibrate nano -o {new}"),
    "ls": Row("ls --json", json=True),
    "show": Row("show nano --json", json=True, long="show pro"),
    "verify": Row("verify nano --json", json=True),
    "rm": Row("rm nothing --yes", code=3, prints=False),
    "plan": Row("plan nano --json", json=True, long="plan flash"),
    "doctor": Row("doctor --json", json=True),
    "version": Row("version"),
    "score": Row("score --model nano --backend cpu --ids {ids}", json=True, long="score --ids {many_ids}"),
    "render": Row("render --in - --contract 0731 --ids", REQUEST, json=True),
    "parse": Row("parse --in -", b"</think>hello", json=True, long="parse --in {long}"),
    "contexts": Row("contexts --json", json=True),
    "contexts ls": Row("contexts ls --json", json=True),
    "contexts show": Row("contexts show 0", code=2, prints=False),
    "contexts rm": Row("contexts rm 0 --yes", code=2, prints=False),
    "contexts export": Row("contexts export 0 {new}", code=2, prints=False),
    "contexts import": Row("contexts import {nowhere}", code=3, prints=False),
    "bench": Row("bench --prompt 8 --tokens 2 --json", json=True, long="bench --ctx 1M"),
    "bench kernels": Row("bench kernels --rounds 1 --working-set 1000000", long="bench kernels"),
    "bench cache": Row(
        "bench cache --trace topics -n 20 --slots 10% --json", json=True, long="bench cache --trace topics"
    ),
    "logs": Row("logs --json", json=True),
    "logs ls": Row("logs ls --json", json=True),
    "logs show": Row("logs show 0", code=2, prints=False),
    "logs search": Row("logs search --json nothing", json=True),
    "logs rm": Row("logs rm 0 --yes", code=2, prints=False),
    "help": Row("help run"),
    "config": Row("config --json", json=True),
    "config set": Row("config set tmep 1", code=2, prints=False),
    "config show": Row("config show --json", json=True),
    "config path": Row("config path"),
}  # fmt: skip


def all_commands() -> set[str]:
    """What `v4 --help` and the help of its groups list, and the call without any command."""

    def walk(command, path: tuple[str, ...]):
        parts = getattr(command, "commands", {})
        if not parts or (command.callback is not None and path):
            yield " ".join(path)
        for name, part in parts.items():
            yield from walk(part, (*path, name))

    return {"", *walk(typer.main.get_command(app), ())}


def material(folder: Path) -> dict[str, Path]:
    """Files for the calls."""
    task = {"prompt": "what is 12*34?"}
    contents = {
        "tasks": json.dumps(task | {"id": "a"}),
        "many": "\n".join(json.dumps(task | {"id": f"a{i}"}) for i in range(2000)),
        "ids": "1,2,3,4",
        "many_ids": ",".join(["5"] * 20000),
        "long": "some words and 12 more\n" * 30000,
    }
    for name, text in contents.items():
        (folder / name).write_text(text)
    return {name: folder / name for name in contents} | {"nowhere": folder / "nowhere"}
