"""The same conversation line by line, for pipes, screen readers and terminals that cannot move the cursor: the answer
goes to stdout, everything else to stderr, nothing is drawn twice."""

import sys
import time
from collections import deque

from v4cli import system, terminal
from v4cli.agent.approval import Answer, Choice, Request
from v4cli.agent.loop import CallEnd, Done
from v4cli.chat.parser import End, Text, Thinking, ToolCallEnd
from v4cli.clean import beginning, visible
from v4cli.errors import UsageError
from v4cli.interrupts import interrupts, spare, told
from v4cli.repl import commands, items
from v4cli.repl.approve import READING, answer_to, choices, question
from v4cli.repl.dialogue import Dialogue
from v4cli.repl.live import ending
from v4cli.repl.render import RESULT_LINES, summary
from v4cli.repl.setup import Setup

LEAVE_WITHIN = 2.0  # seconds between the Ctrl-C's that leave
MOST_OUTPUT = 1 << 20  # characters of a program's output that are remembered
POLL = 0.1  # seconds between looks at whether the user interrupted
PIECE = 1 << 20  # bytes read at a time
LONGEST = 64 << 20  # bytes of a line


def run(setup: Setup) -> None:
    """Read lines from stdin until it ends or /exit. At the end of a pipe the exit code is that of the last message that
    was not answered. V4Error if the model cannot be loaded."""
    lines, writer, is_terminal = Lines(), Writer(), sys.stdin.isatty()

    def ask(request: Request) -> Answer | None:
        return asked(request, lines, dialogue)

    dialogue = Dialogue(setup, writer.take, ask if is_terminal else None)
    dialogue.begin()
    lines.early += [setup.opening] if setup.opening else []
    while not told() and (line := _read(lines) if is_terminal else lines.next()):
        line = line.strip()
        if _leaves(line):
            return
        if line:
            with interrupts(dialogue.stop, go_on=is_terminal):
                dialogue.line(line)
    if not is_terminal:
        sys.exit(dialogue.status)


def _leaves(line: str) -> bool:
    command = commands.named(line)
    return command is not None and command.name == "exit"


def _read(lines: "Lines") -> str:
    """The next line; empty at the end of the input. Ctrl-C begins a new line, twice in a row it leaves."""
    left_at = -LEAVE_WITHIN
    while True:
        _say("> ")
        try:
            return lines.next()
        except KeyboardInterrupt:
            if time.monotonic() < left_at + LEAVE_WITHIN or not spare():
                raise
            left_at = time.monotonic()
            _say(f"\nCtrl-C again, or {system.ENDS_INPUT}, leaves\n")


class Lines:
    """The lines of standard input. `early`: typed before a question could be read; they are dealt with after it."""

    def __init__(self):
        self.early: deque[str] = deque()
        self._begun = b""  # of a line whose end has not come
        self._ended = False

    def next(self) -> str:
        """The next line, with its end; empty at the end of the input."""
        return self.early.popleft() if self.early else self.fresh(lambda: False)

    def fresh(self, cancelled) -> str:
        """A line that comes from now on; empty at the end of the input, or if `cancelled()`."""
        while b"\n" not in self._begun and not self._ended:
            if cancelled():
                return ""
            if self._comes_within(POLL):
                self._read()
        line, end, self._begun = self._begun.partition(b"\n")
        return (line + end).decode(sys.stdin.encoding, "replace")

    def hold(self, seconds: float) -> None:
        """Put aside what has been typed so far and is typed within this time."""
        end = time.monotonic() + seconds
        while not self._ended and self._comes_within(max(0.0, end - time.monotonic())):
            self._read()
        *whole, self._begun = self._begun.split(b"\n")
        self.early += [line.decode(sys.stdin.encoding, "replace") + "\n" for line in whole]

    def _comes_within(self, seconds: float) -> bool:
        return system.can_read(sys.stdin.fileno(), seconds)

    def _read(self) -> None:
        piece = system.read(sys.stdin.fileno(), PIECE)
        self._begun += piece
        if len(self._begun) > LONGEST:
            raise UsageError(f"stdin: a line of more than {LONGEST >> 20} MiB")
        self._ended = not piece


def asked(request: Request, lines: Lines, dialogue: Dialogue) -> Answer | None:
    """The user's typed answer to a call. The end of the input is a no, and so is Ctrl-C. None after a command that
    does not wait: it may have changed the mode."""
    _say(f"{request.call.name}\n{visible(request.preview)}\n{visible(question(request))}\n")
    lines.hold(READING)
    while True:
        _say("answer: ")
        line = lines.fresh(dialogue.stop.is_set)
        command = commands.named(line.strip())
        if not line or _leaves(line.strip()):
            dialogue.interrupt()
            lines.early.extendleft([line] if line else [])
            return Answer(Choice.NO)
        if command and command.at_once:
            dialogue.at_once(line.strip(), line.strip())
            return None
        if commands.is_for_the_program(line.strip()):
            _say("that has to wait for your answer\n")
        elif answer := answer_to(line, request):
            return answer
        _say(f"{choices(request)}\n")


class Writer:
    """Prints what happens as it happens."""

    def __init__(self):
        self.show_thinking = True
        self._open = ""  # the stream whose line has not ended, by name
        self._output = ""  # what has been printed of what runs

    def take(self, item) -> None:
        """Say one item."""
        match item:
            case Text(text):
                self._stream("answer", text)
            case Thinking(text) if self.show_thinking:
                self._stream("reasoning", text)
            case ToolCallEnd(_, name, arguments, fault):
                self._line(f"[{name} {summary(arguments)}]" + (f" (not whole: {fault})" if fault else ""))
            case items.Output(text):
                self._output = (self._output + text)[-MOST_OUTPUT:]
                self._stream("output", text)
            case CallEnd(_, result, ok):
                self._line(("" if ok else "failed: ") + "\n".join(beginning(self._rest(result), RESULT_LINES)))
            case Done():
                self._line("" if told() else ending(item))  # the last word is about the command
            case End() | items.Finished():
                self._end_line()
            case items.Show(thinking):
                self.show_thinking = thinking
            case items.Note(text):
                self._line(self._rest(text))
            case items.Welcome(rows) if terminal.err.is_terminal:
                self._line("\n".join(f"{label}: {text}" if label else text for label, text in rows))
            case items.Ready(model):
                self._line(f"{model} is ready, /help tells more")
            case items.Earlier(messages, left_out):
                self._line(f"{left_out + len(messages)} messages so far")
            case items.Draft(text):
                self._line(f"not sent: {text}")
            case items.Copy():
                self._line("the clipboard needs a terminal: leave out --plain")

    def _rest(self, text: str) -> str:
        """What the end of something that ran tells beyond the output that has been printed."""
        output, self._output = self._output.strip("\n"), ""
        return text.strip("\n").removeprefix(output).lstrip("\n") if output else text

    def _stream(self, name: str, text: str) -> None:
        if self._open != name:
            self._begin(name)
        self._open = "" if name == "output" and text.endswith("\n") else name
        (terminal.out if name == "answer" else terminal.err).write(text)

    def _begin(self, name: str) -> None:
        """Begin a line; what is reasoning, and where both are read together that it is over, is said in words."""
        thought = self._open == "reasoning"
        self._end_line()
        if name == "reasoning":
            _say("(thinking) ")
        elif name == "answer" and thought and terminal.out.is_terminal:
            _say("(answer) ")

    def _end_line(self) -> None:
        if self._open == "answer":
            terminal.out.write("\n")
        elif self._open:
            _say("\n")
        self._open = ""

    def _line(self, text: str) -> None:
        self._end_line()
        if text:
            _say(text + "\n")


def _say(text: str) -> None:
    terminal.err.write(text)
