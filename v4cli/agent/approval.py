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
from v4cli.clean import visible
from v4cli.errors import UsageError
from v4cli.files import write_atomically
from v4cli.options import Mode

FLAG = "--approve"  # what a user who cannot be asked starts with
MEND = "correct the file, or remove it"
OPERATORS = re.compile(r"[^\w \t./:=@%+,'\"*?-]")  # anything a shell might take for more than words
PROGRAMS = ("run_shell", "run_python")  # tools that run what they are given
SITE = re.compile(r"https?://[A-Za-z0-9_.:-]+/")

# A rule covers one command, to the letter. Only of these programs, and subcommands, it may cover all calls: they write
# nothing and run nothing, whatever they are given; git's do not with these options, and no others are covered.
GIT_OPTIONS = frozenset(
    "--abbrev --abbrev-commit --after --ahead-behind --all --author --before --branch --branches --cached --color "
    "--date --decorate --first-parent --follow --graph --grep --ignored --long --max-count --merge-base --merges "
    "--minimal --name-only --name-status --no-color --no-decorate --no-ext-diff --no-merges --no-patch --no-renames "
    "--no-textconv --null --numstat --oneline --patch --porcelain --reverse --short --shortstat --show-stash --since "
    "--staged --stat --summary --tags --unified --until --untracked-files --verbose --word-diff".split()
)
READERS: dict[tuple[str, ...], frozenset | None] = dict.fromkeys(
    [("cat",), ("cmp",), ("cut",), ("du",), ("grep",), ("head",), ("ls",), ("nl",), ("stat",), ("tail",), ("wc",)]
) | dict.fromkeys([("git", "diff"), ("git", "log"), ("git", "show"), ("git", "status")], GIT_OPTIONS)


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
    pattern: str = ""  # the rule that "session" and "always" make; empty if none is possible


class Choice(StrEnum):
    """What the user can answer."""

    YES = "yes"
    SESSION = "session"  # yes, and from now on what matches the pattern
    ALWAYS = "always"  # yes, and in this folder in future conversations too
    NO = "no"
    WORDS = "words"  # neither: the call does not run, and the model is told what they are


@dataclass(frozen=True)
class Answer:
    """The user's answer; `text` is for the model."""

    choice: Choice
    text: str = ""


class Approvals:
    """Decides about the calls in one workspace. `ask` gives None if the call is to be decided on anew, since the mode
    has changed; it is None where nobody can be asked. `notes` are for the user, who takes them out."""

    def __init__(self, mode: str, folder: Path, ask: Callable[[Request], Answer | None] | None = None):
        self.mode, self.folder, self.ask = mode, folder.resolve(), ask
        rules = _stored().get(str(self.folder), [])
        self.rules = [rule for rule in rules if not too_broad(rule)]
        self.notes = [
            f"not used any more, since it would allow too much: {rule} (remove it from {_file()})"
            for rule in rules
            if rule not in self.rules
        ]

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        self._mode = Mode(mode)

    def decide(self, call: Call, context: Context) -> Decision:
        """Whether the call runs. ToolError if it cannot even be shown what it would do."""
        while True:
            unprotected = sandbox.trouble(self.folder) if call.tool.kind is Kind.RUN else ""
            if decision := self._settled(call, unprotected):
                return decision
            request = Request(call, _preview(call, context), unprotected, "" if unprotected else pattern(call))
            answer = self.ask(request)
            if answer is None:
                continue
            if answer.choice not in (Choice.NO, Choice.WORDS) and _preview(call, context) != request.preview:
                return Decision(
                    False, "a file has changed while the user was asked, and so what this would do; read it again"
                )
            return self._answered(request, answer)

    def _settled(self, call: Call, unprotected: str) -> Decision | None:
        """What is decided without a question."""
        kind = call.tool.kind
        if kind is Kind.READ:
            return Decision(True)
        if self.mode is Mode.PLAN:
            return Decision(False, "only reading is allowed at the moment; tell the user what you would do")
        if not unprotected and (kind in FREE[self.mode] or any(matches(rule, call) for rule in self.rules)):
            return Decision(True)
        return Decision(False, _nobody(unprotected)) if self.ask is None else None

    def _answered(self, request: Request, answer: Answer) -> Decision:
        if answer.choice is Choice.NO:
            return Decision(False, "the user said no" + (f": {answer.text}" if answer.text else ""))
        if answer.choice is Choice.WORDS:
            return Decision(False, f"the user said neither yes nor no, but: {answer.text}")
        if request.pattern and answer.choice is not Choice.YES:
            self.rules.append(request.pattern)
        if request.pattern and answer.choice is Choice.ALWAYS:
            try:
                _store(self.folder, request.pattern)
            except (OSError, UsageError) as error:
                why = error.strerror if isinstance(error, OSError) else error
                self.notes.append(f"the rule holds for this session only: {_file()} cannot be written ({why})")
        return Decision(True)


def pattern(call: Call) -> str:
    """The rule suggested for a call: `tool: command`, `tool: what*`, or `tool: *`; empty if none could be trusted to
    mean what it says."""
    if call.tool.kind is Kind.RUN:
        command = _command(call)
        words = _words(command)
        if not words:
            return ""
        reader = next((words[:n] for n in (2, 1) if len(words) > 1 and _covers(tuple(words[:n]), words)), None)
        if reader:
            return f"{call.name}: {' '.join(reader)}*"
        return "" if command.endswith("*") else f"{call.name}: {command}"
    if "url" in call.arguments:
        start = SITE.match(str(call.arguments["url"]))
        return f"{call.name}: {start[0]}*" if start else ""
    return f"{call.name}: *"


def matches(rule: str, call: Call) -> bool:
    """Whether the rule is about this call. A rule about a command is only ever about a single one: no pipes, lists,
    substitutions, redirections or lines."""
    name, _, what = rule.partition(": ")
    if name != call.name or too_broad(rule):
        return False
    if call.tool.kind is Kind.RUN:
        command = _command(call)
        words = _words(command)
        return bool(words) and (_covers(_reader(what), words) if what.endswith("*") else command == what)
    if what == "*":
        return True
    return what.endswith("/*") and str(call.arguments.get("url", "")).startswith(what.removesuffix("*"))


def too_broad(rule: str) -> bool:
    """Whether the rule would let programs run that nobody has seen: earlier versions made such rules."""
    name, _, what = rule.partition(": ")
    return name in PROGRAMS and what.endswith("*") and _reader(what) not in READERS


def _reader(what: str) -> tuple[str, ...]:
    return tuple(what.removesuffix("*").split())


def _covers(reader: tuple[str, ...], words: list[str]) -> bool:
    """Whether a command is the reader's, with nothing but what it may be given."""
    if reader not in READERS or tuple(words[: len(reader)]) != reader:
        return False
    options = READERS[reader]
    return options is None or all(_is_covered(word, options) for word in words[len(reader) :])


def _is_covered(word: str, options: frozenset) -> bool:
    if word.startswith("--"):
        return word == "--" or word.partition("=")[0] in options
    if word.startswith("-"):
        return re.fullmatch("-[abinpqrsuvwz]*[0-9]*", word) is not None
    return not word.startswith(("*", "?"))  # the shell might put an option there


def _command(call: Call) -> str:
    """The command line of a call; empty if it has none, or one that does not look like what it is."""
    command = str(call.arguments.get("command", "")).strip(" \t")
    return command if visible(command) == command else ""


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
        write_atomically(_file(), json.dumps(rules, indent=2).encode() + b"\n", 0o600)
