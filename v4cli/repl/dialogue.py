"""What a line of the user's does: a message is answered, a command is carried out, a shell line is run. Shows nothing
itself: all there is to show goes to `emit`."""

import contextlib
import gc
import os
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterable

from v4cli import paths, settings, system
from v4cli.agent.approval import Approvals
from v4cli.agent.attached import Attached
from v4cli.agent.commands import shell
from v4cli.agent.conversation import Conversation, fenced
from v4cli.agent.loop import Agent, shortened
from v4cli.agent.tools import Context, Toolbox
from v4cli.agent.toolset import toolset
from v4cli.agent.transcript import Transcript
from v4cli.chat import formats
from v4cli.chat.parser import End, Text, Thinking
from v4cli.errors import Exit, UsageError, V4Error
from v4cli.options import Mode
from v4cli.plan import pace
from v4cli.repl import commands, items
from v4cli.repl.files import with_files
from v4cli.repl.setup import Setup
from v4cli.store import library

ASK_S, ASK_TOKENS = 30.0, 20_000  # more than this, where the time is not known, is asked about before it is computed
SHOWN_EARLIER = 20  # messages of a conversation that is taken up again
KILL_AFTER = 1.0  # seconds that a command of the user's has to end
SHELL_OUTPUT = 16 << 10  # characters of a command's output that the model gets
SHELL_BYTES = 1 << 20  # of it that are kept, the last ones


class Dialogue:
    """A conversation and all that its commands need. Used from one thread; `interrupt` from any."""

    def __init__(self, setup: Setup, emit: Callable, ask: Callable):
        """Load the model. `emit(item)`: see items.py; `ask(request)`: an approval.Answer. V4Error."""
        self.setup, self.emit, self.ask = setup, emit, ask
        self.stop = threading.Event()
        self._tools = contextlib.ExitStack()  # holds the connections to MCP servers
        self.attached = ""  # output of the user's commands, for the next message
        self.status = Exit.OK  # of the last message that was not answered
        self._told = ""  # why the conversation is not kept
        self._weighed = ""  # a message that takes long, while the user is asked whether it is to be sent
        self.used: int | None = 0  # tokens of the conversation in the context, between answers
        self.playing = self.answered = False  # an answer is being made; one was, in this conversation
        self._counted: tuple = ()  # what `used` was counted of
        self._whole = False  # the last thing that happened is an answer that ended by itself
        transcript = Transcript.load(setup.resume) if setup.resume else self.blank()
        transcript.records = not setup.told.said.no_log
        told, use = setup.told, setup.told.tool_use
        self.model = told.model or transcript.about.get("model") or settings.default_model()
        self.approvals, tools = Approvals(use.approve or Mode.ASK, setup.folder, ask), self._toolbox()
        chat, context, decide = self._open(self.model), Context(setup.folder), self.approvals.decide
        agent = Agent(chat, tools, context, decide, self._output, use.max_rounds)
        self.conversation = Conversation(transcript, agent, told.answer)
        transcript.set(model=self.model, **({"system": told.system} if told.system else {}))

    @property
    def chat(self):
        return self.conversation.agent.chat

    @property
    def tools_spec(self) -> str:
        if self.setup.told.tool_use.tools is not None:
            return self.setup.told.tool_use.tools
        return "nano" if self.model == "nano" else "all,mcp"

    def _open(self, model: str):
        chat = self.setup.open(model)
        chat.note = self.note
        for text in chat.notes:
            self.note(text)
        return chat

    def _toolbox(self) -> Toolbox:
        """The tools the user wants of this model; servers that were connected for another are ended first."""
        self._tools.close()
        with settings.blamed("tools", self.setup.told.tool_use.tools):
            return self._tools.enter_context(toolset(self.tools_spec, self.note, self.setup.told.tool_use.network))

    def blank(self, system: str = "") -> Transcript:
        """A conversation without messages."""
        about = {"system": system} if system else {}
        made = Transcript.new(paths.chats_dir(), folder=str(self.setup.folder), **about)
        made.records = not self.setup.told.said.no_log
        return made

    def begin(self) -> None:
        """Say that the model is here, and what it is; show what was said before."""
        self.emit(items.Welcome(self.setup.greet(self)))
        self.emit(items.Ready(self.model))
        if self.setup.told.display.hide_thinking:
            self.emit(items.Show(False))
        self._tell_about_rules()
        self.show_earlier()
        self._count()
        before = self.conversation.transcript.about.get("folder")
        if before != str(self.setup.folder):
            self.note(f"this conversation began in {before}; now it goes on in {self.setup.folder}")

    def show_earlier(self) -> None:
        """The last messages of the conversation."""
        messages = self.conversation.transcript.messages
        if messages:
            left_out = max(0, len(messages) - SHOWN_EARLIER)
            self.emit(items.Earlier(list(messages[left_out:]), left_out))

    def interrupt(self) -> None:
        """End what is being done now; what was said so far is kept."""
        self.stop.set()

    def note(self, text: str) -> None:
        self.emit(items.Note(text))

    def _tell_about_rules(self) -> None:
        while self.approvals.notes:
            self.note(self.approvals.notes.pop(0))

    def line(self, line: str, shown: str = "") -> None:
        """Do what a line says; `shown`: how it looked where it was typed. Errors are told, never raised."""
        self.at_once(line, shown or line)
        self._count()
        self.emit(items.Finished())

    def context(self) -> list[int]:
        """Tokens of the conversation as the next prompt begins with them; before the first message, of what comes with
        it. RequestError."""
        talk = self.conversation
        said = talk.messages if talk.transcript.messages else [*talk.messages, {"role": "user", "content": ""}]
        return self.chat.context(said, talk.options, talk.agent.toolbox.schemas)

    def _count(self) -> None:
        """Be right about `used`. Of a whole answer it is known, elsewhere the text is encoded."""
        transcript = self.conversation.transcript
        now = (transcript.id, len(transcript.messages), transcript.about.get("system"), self.model)
        if now == self._counted and not self._whole:
            return
        self.answered = self.answered and now[0] == self._counted[0] and now[3] == self._counted[3]
        self._counted, self.used, whole, self._whole = now, 0, self._whole, False
        if whole:
            self.used = len(self.chat.prompt) + len(self.chat.ids)
        elif transcript.messages:
            try:
                self.used = len(self.context())
            except V4Error:  # a conversation that cannot be gone on with says so when it is
                self.used = None

    def at_once(self, line: str, shown: str) -> None:
        """The same for a command that does not disturb the answer being written; then, from another thread."""
        self.emit(items.Asked(shown))
        try:
            if line.startswith("!"):
                self._shell(line[1:].strip())
            elif commands.is_command(line):
                commands.run(self, line)
            elif line.strip():
                self.message(line, shown)
        except V4Error as error:
            hint = f"\nhint: {error.hint}" if error.hint else ""
            self.emit(items.Note(f"{error}{hint}", error=True))
        except Exception as error:
            trace = "\n" + traceback.format_exc() if os.environ.get("V4_DEBUG") else ""
            self.emit(items.Note(f"unexpected {type(error).__name__}: {error}{trace}", error=True))
        self._tell_about_rules()
        if (trouble := self.conversation.transcript.trouble) and trouble != self._told:
            self.emit(items.Note(f"not kept: {trouble}\nhint: V4_HOME=FOLDER keeps everything elsewhere", error=True))
        self._told = trouble

    def message(self, line: str, shown: str) -> None:
        """Answer a message. Where that fails before anything is said, it is the user's again."""
        talk, attached = self.conversation, self.attached
        before = len(talk.messages)
        if self._weighed and line.strip().lower() in ("y", "yes"):
            line = shown = self._weighed
        try:
            text, found = with_files(line, self.setup.folder)
            if found.files and not self._is_worth_it(line, shown, text, found):
                return
            text = f"{attached}\n{text}" if attached else text
            self.attached = ""
            typed = shown if text != shown else ""
            self.play(talk.ask(text, self._progress, self.stop.is_set, typed))
            self._whole = self.chat.finish == "stop"
        except Exception as error:
            self.status = error.exit_code if isinstance(error, V4Error) else Exit.FAILURE
            said = [message["role"] for message in talk.messages[before:]]
            if "assistant" not in said:
                self.attached = attached
                self.emit(items.Draft(shown))
                if "user" in said:
                    talk.undo()
            raise

    def _is_worth_it(self, line: str, shown: str, text: str, found: Attached) -> bool:
        """Say what files take. Whether to send the message with them: where that takes long, once the user has said so,
        if there is one. UsageError where there is no room."""
        at, context = len(self.chat.session.tokens), self.chat.engine.config.max_position_embeddings
        n_tokens = pace.estimated(self.chat.tokenizer.encode, text)
        seconds, before, self._weighed = self.chat.pace.seconds(at, at + n_tokens), self._weighed, ""
        told = f"{found.about()}: adds {pace.about(n_tokens, seconds)}"
        if n_tokens >= context:
            why = f"{told}; the model's whole context has {context:,}"
            raise UsageError(why, f"give it less; the largest: {found.largest()}")
        is_long = n_tokens > ASK_TOKENS if seconds is None else seconds > ASK_S
        if is_long and self.ask and line not in ("", before):
            unknown = "" if seconds is not None else ", and how long that takes is not known here yet"
            self.note(f"{told}{unknown}; y sends it, Up brings it back")
            self._weighed = line
            return False
        self.note(told)
        return True

    def play(self, events: Iterable) -> None:
        """Pass events on, with what reasoning took; then store what can be reused."""
        started, thinking, is_code = time.monotonic(), False, False
        format_ = self.conversation.options.format
        self.playing = True
        try:
            for event in events:
                if format_ and isinstance(event, Text) and not is_code:
                    self.emit(items.Code("json"))
                is_code = isinstance(event, Text) or (is_code and not isinstance(event, End))
                if isinstance(event, Thinking) and not thinking:
                    started, thinking = time.monotonic(), True
                elif thinking and not isinstance(event, Thinking):
                    self.emit(items.Thought(time.monotonic() - started, len(self.chat.ids)))
                    thinking = False
                self.emit(event)
        finally:
            self.playing, self.answered = False, True
            for note in self.setup.keep(self.chat.session):
                self.note(note)
        if format_ and self.chat.finish == "stop" and self.chat.message.get("content"):
            formats.checked(self.chat.message["content"], format_)
        if self.setup.told.display.stats:
            self.note(self.setup.stats_line(self.chat.stats))

    def retry(self) -> None:
        """Answer the last message once more."""
        self.play(self.conversation.retry(self._progress, self.stop.is_set))
        self._whole = self.chat.finish == "stop"

    def compact(self) -> None:
        """Go on from a summary."""
        self.play(self.conversation.compact(self._progress, self.stop.is_set))

    def switch(self, model: str) -> None:
        """Another model for this conversation; the old one is closed first, since both might not fit."""
        agent, before = self.conversation.agent, self.model
        library.model_folder(model)
        agent.chat = None
        gc.collect()
        try:
            agent.chat = self._open(model)
            self.model = model
        except Exception:
            agent.chat = self._open(before)
            raise
        agent.toolbox = self._toolbox()
        self.conversation.start(self.conversation.transcript)
        self.conversation.transcript.set(model=model)

    def _progress(self, done: int, total: int) -> None:
        self.emit(items.Prefill(done, total))

    def _output(self, call, text: str) -> None:
        self.emit(items.Output(text))

    def _shell(self, command: str) -> None:
        """Run a command line as the user would; the next message tells the model what it printed."""
        if not command:
            raise UsageError("! needs a command", "!ls")
        process = subprocess.Popen(
            shell(command) if system.WINDOWS else command, shell=not system.WINDOWS, cwd=self.setup.folder,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **system.APART,
        )  # fmt: skip
        printed, n_bytes, done = bytearray(), 0, threading.Event()
        watcher = threading.Thread(target=self._end_on_interrupt, args=(process.pid, done), daemon=True)
        watcher.start()
        while piece := process.stdout.read1(1 << 16):
            printed += piece
            n_bytes += len(piece)
            del printed[:-SHELL_BYTES]
            self.emit(items.Output(piece.decode(errors="replace")))
        status = process.wait()
        done.set()
        text = printed.decode(errors="replace").rstrip("\n")
        if n_bytes > SHELL_BYTES:
            text = f"[{n_bytes - SHELL_BYTES} bytes before this are left out]\n{text}"
        self.note(text + f"\n(exit {status})" if status else text or "(no output)")
        self.attached += f"I ran `{command}` (exit {status}):\n{fenced(shortened(text, SHELL_OUTPUT))}\n"

    def _end_on_interrupt(self, group: int, done: threading.Event) -> None:
        """Until `done`, end all of a process group once the user wants it."""
        while not done.wait(0.1):
            if self.stop.is_set():
                for number in (signal.SIGTERM, system.KILL):
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        system.kill_group(group, number)
                    if done.wait(KILL_AFTER):
                        break
                return
