"""`v4 chat`: a simple loop of questions and answers that share one session."""

import sys
from pathlib import Path

from v4cli import paths
from v4cli.chat.parser import Text, Thinking, ToolCallEnd
from v4cli.cli import output, sessions
from v4cli.cli.progress import Prefill
from v4cli.cli.run import cancellable, stats_line
from v4cli.errors import V4Error

HELP = "/help  /think on|off  /clear (forget the conversation)  /stats  /exit — Ctrl-C stops an answer, Ctrl-D leaves"


def chat_loop(
    model: str,
    system: str,
    think: bool,
    backend: str | None,
    numerics: str | None,
    ram: str | None,
    kv_dir: Path | None,
    no_cache: bool,
) -> None:
    """Read, answer, repeat until /exit or the end of the input."""
    from v4cli.chat.turn import Chat

    session = sessions.session_maker(kv_dir, not no_cache)
    chat = Chat.open(paths.model_folder(model), backend, numerics, session, output.ram_budget(ram), paths.use_dir())
    loop = Loop(chat, system, think)
    ask = _reader()
    output.note(f"{model} is ready. {HELP}", dim=True)
    while True:
        try:
            line = ask()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if line.strip() == "/exit":
            return
        try:
            loop.line(line.strip())
        except V4Error as error:
            output.note(f"v4: {error}")


def _reader():
    """A line editor with history on a terminal, plain lines in a pipe."""
    if not sys.stdin.isatty():

        def plain() -> str:
            line = sys.stdin.readline()
            if not line:
                raise EOFError
            return line

        return plain
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory

    history = paths.state_dir() / "history"
    history.touch(mode=0o600)
    session = PromptSession(history=FileHistory(str(history)))
    return lambda: session.prompt("> ")


class Loop:
    """The conversation so far and what a line does to it."""

    def __init__(self, chat, system: str, think: bool):
        self.chat = chat
        self.start = [{"role": "system", "content": system}] if system else []
        self.messages = list(self.start)
        self.think = think

    def line(self, line: str) -> None:
        """A command or a question."""
        if line in ("/think on", "/think off"):
            self.think = line.endswith("on")
        elif line == "/clear":
            self.messages = list(self.start)
        elif line == "/stats":
            output.note(stats_line(self.chat.stats))
        elif line.startswith("/"):
            output.note(HELP)
        elif line:
            self.answer(line)

    def answer(self, question: str) -> None:
        """Stream the reply; an interrupted one stays in the conversation as far as it came."""
        from v4cli.chat.turn import Options

        messages = [*self.messages, {"role": "user", "content": question}]
        thinking = False
        with cancellable() as cancelled:
            for event in self.chat.reply(messages, Options(thinking=self.think), None, Prefill(), cancelled):
                if isinstance(event, Thinking):
                    thinking = True
                    output.note(event.text, end="", dim=True)
                    continue
                if thinking:
                    thinking = False
                    output.note("")
                if isinstance(event, Text):
                    output.answer(event.text)
                elif isinstance(event, ToolCallEnd):
                    output.note(f"[{event.name} {event.arguments}]")
        output.answer("\n")
        if self.chat.finish == "interrupted":
            output.note("(stopped)", dim=True)
        self.messages = [*messages, self.chat.message]
        sessions.keep(self.chat.session)
