"""The same conversation line by line, for pipes, screen readers and terminals that cannot move the cursor: the answer
goes to stdout, everything else to stderr, nothing is drawn twice."""

import sys
import time

from v4cli.agent.approval import Answer, Choice, Request
from v4cli.agent.loop import CallEnd, Done
from v4cli.chat.parser import End, Text, Thinking, ToolCallEnd
from v4cli.clean import beginning, harmless, visible
from v4cli.interrupts import interrupts, spare, told
from v4cli.repl import commands, items
from v4cli.repl.approve import MEANING, offered, question
from v4cli.repl.dialogue import Dialogue
from v4cli.repl.live import ENDS
from v4cli.repl.render import RESULT_LINES, summary
from v4cli.repl.setup import Setup

LEAVE_WITHIN = 2.0  # seconds between the Ctrl-C's that leave
MOST_OUTPUT = 1 << 20  # characters of a program's output that are remembered


def run(setup: Setup) -> None:
    """Read lines from stdin until it ends or /exit. At the end of a pipe the exit code is that of the last message that
    was not answered. V4Error if the model cannot be loaded."""
    writer, asked = Writer(), sys.stdin.isatty()
    dialogue = Dialogue(setup, writer.take, ask if asked else None)
    dialogue.begin()
    while not told() and (line := _read() if asked else sys.stdin.readline()):
        line = line.strip()
        if (command := commands.named(line)) and command.name == "exit":
            return
        if line:
            with interrupts(dialogue.stop, go_on=asked):
                dialogue.line(line)
    if not asked:
        sys.exit(dialogue.status)


def _read() -> str:
    """The next line; empty at the end of the input. Ctrl-C begins a new line, twice in a row it leaves."""
    left_at = -LEAVE_WITHIN
    while True:
        _say("> ")
        try:
            return sys.stdin.readline()
        except KeyboardInterrupt:
            if time.monotonic() < left_at + LEAVE_WITHIN or not spare():
                raise
            left_at = time.monotonic()
            _say("\nCtrl-C again, or Ctrl-D, leaves\n")


def ask(request: Request) -> Answer:
    """The user's typed answer to a call."""
    _say(f"{request.call.name}\n{visible(request.preview)}\n{question(request)}\nanswer: ")
    while True:
        answer, _, reason = sys.stdin.readline().strip().partition(" ")
        if not answer or answer == "e":
            return Answer(Choice.NO, reason.strip())
        if answer in offered(request):
            return Answer(MEANING[answer])
        _say(f"type {', '.join(offered(request))}: ")


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
            case ToolCallEnd(_, name, arguments):
                self._line(f"[{name} {summary(arguments)}]")
            case items.Output(text):
                self._output = (self._output + text)[-MOST_OUTPUT:]
                self._stream("output", text)
            case CallEnd(_, result, ok):
                self._line(("" if ok else "failed: ") + "\n".join(beginning(self._rest(result), RESULT_LINES)))
            case Done(reason) if reason in ENDS:
                self._line(ENDS[reason])
            case End() | items.Finished():
                self._end_line()
            case items.Show(thinking):
                self.show_thinking = thinking
            case items.Note(text):
                self._line(self._rest(text))
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
            self._end_line()
        text = harmless(text)
        self._open = "" if name == "output" and text.endswith("\n") else name
        if name == "answer":
            sys.stdout.write(text)
            sys.stdout.flush()
        else:
            _say(text)

    def _end_line(self) -> None:
        if self._open == "answer":
            sys.stdout.write("\n")
            sys.stdout.flush()
        elif self._open:
            _say("\n")
        self._open = ""

    def _line(self, text: str) -> None:
        self._end_line()
        if text:
            _say(harmless(text) + "\n")


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
