"""Who decides whether a call runs: a mode, rules the user has made for this folder, or the user."""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from v4cli import jsonfile, paths
from v4cli.agent import sandbox
from v4cli.agent.tools import Call, Context, Decision, Kind
from v4cli.errors import UsageError
from v4cli.files import write_atomically

FLAG = "--approve"  # what a user who cannot be asked starts with
MEND = "correct the file, or remove it"
OPERATORS = re.compile(r"[^\w \t./:=@%+,'\"*?-]")  # anything a shell might take for more than words
RUNNERS = {  # programs that run others: with any arguments, they would be a rule for everything
    "awk", "bash", "busybox", "chroot", "command", "dash", "doas", "env", "eval", "exec", "find", "fish", "gdb", "ksh",
    "lua", "make", "nice", "node", "nohup", "npx", "parallel", "perl", "php", "python", "python3", "ruby", "sed",
    "setsid", "sh", "source", "ssh", "stdbuf", "strace", "su", "sudo", "tclsh", "time", "timeout", "uv", "uvx", "watch",
    "xargs", "zsh",
}  # fmt: skip


class Mode(StrEnum):
    """What runs without a question."""

    ASK = "ask"  # reading
    EDITS = "edits"  # reading and editing
    PLAN = "plan"  # reading; nothing else is even asked about
    ALL = "all"  # everything


FREE = {
    Mode.ASK: {Kind.READ},
    Mode.EDITS: {Kind.READ, Kind.EDIT},
    Mode.PLAN: {Kind.READ},
    Mode.ALL: set(Kind),
}


@dataclass(frozen=True)
class Request:
    """A call that the user is asked about."""

    call: Call
    preview: str  # the command, a diff, or the arguments
    unprotected: str = ""  # why the call will run without a sandbox; empty if there is one or none is needed
    pattern: str = ""  # the rule that "session" and "always" would make; empty if none is possible


class Choice(StrEnum):
    """What the user can answer."""

    YES = "yes"
    SESSION = "session"  # yes, and from now on what matches the pattern
    ALWAYS = "always"  # yes, and in this folder in future conversations too
    NO = "no"


@dataclass(frozen=True)
class Answer:
    """The user's answer; `text` is for the model, and `pattern` instead of the suggested one."""

    choice: Choice
    text: str = ""
    pattern: str = ""


class Approvals:
    """Decides about the calls in one workspace. `ask` is None where nobody can be asked; `mode` may be changed."""

    def __init__(self, mode: Mode, folder: Path, ask: Callable[[Request], Answer] | None = None):
        self.mode, self.folder, self.ask = Mode(mode), folder.resolve(), ask
        self.rules = _stored().get(str(self.folder), [])

    def decide(self, call: Call, context: Context) -> Decision:
        """Whether the call runs. ToolError if it cannot even be shown what it would do."""
        kind = call.tool.kind
        if kind is Kind.READ:
            return Decision(True)
        if self.mode is Mode.PLAN:
            return Decision(False, "only reading is allowed at the moment; tell the user what you would do")
        unprotected = sandbox.trouble(self.folder) if kind is Kind.RUN else ""
        if not unprotected and (kind in FREE[self.mode] or any(matches(rule, call) for rule in self.rules)):
            return Decision(True)
        if self.ask is None:
            return Decision(False, _nobody(unprotected))
        request = Request(call, _preview(call, context), unprotected, "" if unprotected else pattern(call))
        answer = self.ask(request)
        if answer.choice is not Choice.NO and _preview(call, context) != request.preview:
            return Decision(
                False, "a file has changed while the user was asked, and so what this would do; read it again"
            )
        return self._answered(request, answer)

    def _answered(self, request: Request, answer: Answer) -> Decision:
        if answer.choice is Choice.NO:
            return Decision(False, "the user said no" + (f": {answer.text}" if answer.text else ""))
        rule = answer.pattern or request.pattern
        if rule and answer.choice is not Choice.YES:
            self.rules.append(rule)
        if rule and answer.choice is Choice.ALWAYS:
            _store(self.folder, rule)
        return Decision(True)


def pattern(call: Call) -> str:
    """The rule suggested for a call, as `tool: what*`; empty if none could be trusted to mean what it says."""
    if call.tool.kind is Kind.RUN and "command" in call.arguments:
        words = _words(call.arguments["command"])
        if not words:
            return ""
        if Path(words[0]).name in RUNNERS or len(words) == 1:
            return f"{call.name}: {shlex.join(words)}"
        n = 2 if re.fullmatch(r"[a-z][a-z-]*", words[1]) else 1
        return f"{call.name}: {shlex.join(words[:n])}*"
    if "url" in call.arguments:
        start = re.match(r"https?://[\w.:-]+/", call.arguments["url"])
        return f"{call.name}: {start[0]}*" if start else ""
    return f"{call.name}: *"


def matches(rule: str, call: Call) -> bool:
    """Whether the rule is about this call. In a command `*` at the end stands for further words, and a rule is only
    ever about a single command: no pipes, lists, substitutions, redirections or lines."""
    name, _, what = rule.partition(": ")
    if name != call.name:
        return False
    if call.tool.kind is Kind.RUN and "command" in call.arguments:
        words, wanted = _words(call.arguments["command"]), _words(what.removesuffix("*"))
        return bool(words and wanted) and words[: len(wanted) if what.endswith("*") else None] == wanted
    if what == "*":
        return True
    return what.endswith("/*") and call.arguments.get("url", "").startswith(what.removesuffix("*"))


def _words(command: str) -> list[str]:
    """The words of a simple command; none if it is anything else."""
    if OPERATORS.search(command):
        return []
    try:
        words = shlex.split(command)
    except ValueError:
        return []
    return words if words and "=" not in words[0] else []


def _nobody(unprotected: str) -> str:
    """Why a call is refused where nobody can be asked, in words for the model and the user who reads along."""
    if unprotected:
        return f"there is no sandbox ({unprotected}), and nobody can be asked whether it should run without one"
    return f"nobody can be asked whether it should run; the user can allow it by starting with {FLAG}"


def _preview(call: Call, context: Context) -> str:
    """What the call would do now, as the user sees it."""
    if call.tool.preview:
        return call.tool.preview(call.arguments, context)
    return json.dumps(call.arguments, ensure_ascii=False, indent=2)


def _file() -> Path:
    return paths.state_dir() / "approvals.json"


def _stored() -> dict[str, list[str]]:
    """The rules of each folder. UsageError if the file is not what this program writes."""
    path = _file()
    if not path.exists():
        return {}
    try:
        rules = jsonfile.read(path, UsageError)
    except UsageError as error:
        raise UsageError(str(error), MEND) from None
    if not isinstance(rules, dict) or not all(
        isinstance(of, list) and all(isinstance(rule, str) for rule in of) for of in rules.values()
    ):
        raise UsageError(f"{path}: not rules by folder", MEND)
    return rules


def _store(folder: Path, rule: str) -> None:
    """Remember a rule for the folder, beside what other processes remember."""
    from filelock import FileLock

    _file().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(f"{_file()}.lock", mode=0o600):
        rules = _stored()
        rules[str(folder)] = list(dict.fromkeys([*rules.get(str(folder), []), rule]))
        write_atomically(_file(), json.dumps(rules, ensure_ascii=False, indent=2).encode() + b"\n", 0o600)
