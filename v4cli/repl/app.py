"""The REPL on a terminal: what is finished goes to the scrollback, what is in progress and the input stay below it."""

import asyncio
import base64
import signal
import time

from prompt_toolkit.application import in_terminal
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import History as Lines
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_input
from prompt_toolkit.output import ColorDepth

from v4cli import paths, terminal
from v4cli.errors import V4Error
from v4cli.repl import commands, items
from v4cli.repl.input import Completions, History
from v4cli.repl.keys import bindings
from v4cli.repl.pastes import PasteReader, Pastes
from v4cli.repl.screen import STYLE, Resizable, Screen, layout
from v4cli.repl.setup import Setup
from v4cli.repl.status import Status
from v4cli.repl.worker import Mailbox, Worker
from v4cli.streams import colour

LEAVE_WITHIN = 2.0  # seconds between the Ctrl-C's that leave
LAST_WORDS = 10.0  # seconds that an answer may take to stop when leaving
PATIENCE = 1.0  # seconds of that without a word
TICK = 0.5  # seconds between updates of the status while working


def run(setup: Setup) -> None:
    """Talk until the user leaves. V4Error if the model cannot be loaded."""
    repl = Repl(setup)
    asyncio.run(repl.run())
    if repl.failure:
        raise repl.failure
    if id := repl.kept:
        terminal.err.write(f"v4 chat -r {id} goes on with this conversation\n")


class Repl:
    """The application, and what its keys do."""

    def __init__(self, setup: Setup):
        self.setup = setup
        self.pastes = Pastes()
        self.asking = None  # an approve.Asking while a call waits for the user
        self.live = self.draw = None  # once there is something to show
        self.failure: Exception | None = None
        self.notice = ""  # shown instead of the status
        self.begun_at: float | None = None  # when the line in the input was begun; None while it is empty
        self.left_at = 0.0
        self.screen = Screen.open()
        self.keyboard = create_input()
        self.keyboard.stdin_reader = PasteReader(self.keyboard.stdin_reader)
        self.status = Status(setup.told.model or "the model")
        self.mailbox = Mailbox(self.deliver)
        self.worker = Worker(setup, self.mailbox.put)
        self._view = (None, "")
        self._unremembered = ""  # why lines are not kept
        self.buffer = Buffer(
            multiline=True,
            completer=Completions(setup.folder),
            complete_while_typing=Condition(lambda: self.buffer.text.startswith("/")),
            history=self._history(),
            tempfile_suffix=".md",
            on_text_changed=lambda _: self._typed(),
        )
        coloured = colour() is not False
        self.app = Resizable(
            layout=layout(self),
            key_bindings=bindings(self),
            style=STYLE if coloured else None,
            color_depth=None if coloured else ColorDepth.DEPTH_1_BIT,
            input=self.keyboard,
            output=self.screen,
            erase_when_done=True,
        )
        self.app.ttimeoutlen = 0.05  # of an Esc that is only that

    def _history(self) -> Lines:
        """Lines typed before; where they cannot be kept, those of this conversation."""
        try:
            return History(paths.state_dir() / "history", self.pastes)
        except V4Error as error:
            self._unremembered = str(error)
            return InMemoryHistory()

    async def run(self) -> None:
        """Show the prompt, then load the model behind it."""
        self.mailbox.loop = loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.leave)
        ticker = loop.create_task(self._tick())
        self.app.after_render.add_handler(self._first_render)
        try:
            await self.app.run_async()
        except EOFError:  # the terminal has gone
            pass
        finally:
            ticker.cancel()
            self.worker.close(0 if self.worker.dialogue is None else PATIENCE)
            if self.worker.is_working:
                terminal.err.write("the answer is being stopped and kept\n")
                self.worker.close(LAST_WORDS)

    @property
    def kept(self) -> str:
        """The ID of the conversation, if anything has been said in it."""
        talk = self.worker.dialogue and self.worker.dialogue.conversation
        return talk.transcript.id if talk and talk.transcript.is_kept else ""

    def _first_render(self, app) -> None:
        self.app.after_render.remove_handler(self._first_render)
        if self._unremembered:
            self.mailbox.put(items.Note(f"what is typed is not remembered: {self._unremembered}", error=True))
        self.worker.start()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            if self.worker.busy:
                self.app.invalidate()

    # -- what the dialogue tells ----------------------------------------------------------------------------------

    def deliver(self, batch: list) -> None:
        """Show what has happened."""
        if self.live is None:
            self._begin_showing()
        done = ""
        for item in batch:
            self.status.take(item)
            done += self.live.take(item)
            self._act_on(item)
        self._view = (None, "")
        if done:
            self.print_above(done)
        self.app.invalidate()

    def _begin_showing(self) -> None:
        from v4cli.repl.live import Live
        from v4cli.repl.render import Renderer

        self.draw = Renderer(lambda: self.screen.get_size().columns, colour() is not False)
        self.live = Live(self.draw)

    def _act_on(self, item) -> None:
        match item:
            case items.Ready():
                self.status.dialogue = self.worker.dialogue
            case items.Ask():
                from v4cli.repl.approve import READING, Asking

                self.asking = Asking(item)
                asyncio.get_running_loop().call_later(READING, self.app.invalidate)
            case items.Draft(text):
                self.buffer.text = f"{text}\n{self.buffer.text}" if self.buffer.text else text
                self.buffer.cursor_position = len(text)
            case items.Copy(text):
                self.screen.write_raw(f"\x1b]52;c;{base64.b64encode(text.encode(errors='replace')).decode()}\x07")
                self.notice = f"{len(text):,} characters copied"
            case items.Failed(error):
                self.failure = error
                self.leave()

    def print_above(self, text: str) -> None:
        """Put finished text into the scrollback; it appears together with the next drawing of what is below it."""
        with self.screen.held():
            self.app.renderer.erase()
            self.screen.write_raw(text.replace("\n", "\r\n"))
            self.app.renderer.reset()

    def view(self, height: int) -> str:
        """What is in progress, drawn once for each change."""
        key = (height, self.screen.get_size().columns)
        if self._view[0] != key:
            self._view = (key, self.live.view(height))
        return self._view[1]

    # -- what the keys do -----------------------------------------------------------------------------------------

    def _typed(self) -> None:
        self.notice = ""
        if not self.buffer.text:
            self.begun_at = None
        elif self.begun_at is None:
            self.begun_at = time.monotonic()

    def _clear(self) -> None:
        self.buffer.reset()
        self.begun_at = None

    @property
    def answering(self) -> bool:
        """Whether the line in the input, or the next one, answers the question about a call."""
        return self.asking is not None and (self.begun_at is None or self.begun_at >= self.asking.read_at)

    def send(self) -> None:
        """Enter: the input is sent, or what its last character says."""
        document = self.buffer.document
        if document.text_before_cursor.endswith("\\"):
            self.buffer.delete_before_cursor(1)
            self.buffer.insert_text("\n")
        elif self.answering and not commands.is_for_the_program(document.text.strip()):
            self._take_answer(self.pastes.expanded(document.text))
        elif document.text.strip():
            shown = document.text.strip()
            self.buffer.append_to_history()
            self._clear()
            self.submit(self.pastes.expanded(shown), shown)

    def _take_answer(self, line: str) -> None:
        from v4cli.repl.approve import answer_to, choices

        answer = answer_to(line, self.asking.item.request)
        if answer is None:
            self.notice = choices(self.asking.item.request)
        else:
            self._clear()
            self._answer(answer)

    def submit(self, line: str, shown: str) -> None:
        """Commands that need not wait are carried out; everything else is for the worker, in order."""
        command = commands.named(line)
        if command and command.name == "exit":
            self.leave()
        elif command and command.at_once and self.worker.busy and self.worker.dialogue:
            self.worker.dialogue.at_once(line, shown)
            if command.name == "approve" and self.asking:
                self._answer(None)
        else:
            self.worker.submit(line, shown)

    def stop(self, control_c: bool) -> None:
        """Esc or Ctrl-C: take back what waits, stop the answer, clear the input; Ctrl-C twice leaves."""
        if self.asking:
            if self.answering:
                self._clear()
            self.worker.interrupt()
            self._answer(self.asking.no())
        elif self.worker.busy and (line := self.worker.take_back()) is not None:
            self.deliver([items.Draft(line)])
        elif self.worker.busy and self.worker.dialogue:
            self.worker.interrupt()
        elif control_c and self.buffer.text:
            self._clear()
        elif control_c and time.monotonic() - self.left_at < LEAVE_WITHIN:
            self.leave()
        elif control_c:
            self.left_at, self.notice = time.monotonic(), "Ctrl-C again leaves"
            asyncio.get_running_loop().call_later(LEAVE_WITHIN, self._forget_notice)

    def _forget_notice(self) -> None:
        self.notice = ""
        self.app.invalidate()

    def _answer(self, answer) -> None:
        """Decide about the call that waits; None: anew, by the mode as it is now."""
        self.asking.item.answer.put(answer)
        self.asking = None

    def leave(self) -> None:
        if self.app.is_running and not self.app.is_done:
            self.app.exit()

    async def show_all(self) -> None:
        """The conversation in full, on a screen of its own; what happens meanwhile is shown afterwards."""
        if self.worker.dialogue is None or self.draw is None:
            return
        from v4cli.repl.viewer import viewer

        self.mailbox.paused = True
        try:
            async with in_terminal():
                messages = list(self.worker.dialogue.conversation.transcript.messages)
                await viewer(messages, self.draw, self.screen).run_async()
        finally:
            self.mailbox.resume()

    async def edit(self) -> None:
        """The input in the user's editor."""
        self.mailbox.paused = True
        try:
            await self.buffer.open_in_editor()
        finally:
            self.mailbox.resume()
