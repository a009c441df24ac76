"""The agent loop: the model's turn, its tool calls in order, their results, the next turn, until it is done."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from v4cli.agent.tools import Call, Context, Decision, Toolbox, ToolError
from v4cli.chat.messages import UNREADABLE, calls_in
from v4cli.chat.parser import Event as ChatEvent
from v4cli.chat.parser import ToolCallStart
from v4cli.chat.turn import Chat
from v4cli.options import MAX_ROUNDS, Options

MAX_RESULT = 64 << 10  # characters of a result that the model gets; of longer ones, both ends
NOT_RUN = "error: this call was not run: "
RUNAWAY = "the block of calls was too long and has been stopped; make fewer or shorter calls"


@dataclass(frozen=True)
class Round:
    """The model's turn number `number` begins."""

    number: int


@dataclass(frozen=True)
class Said:
    """A message is complete and belongs to the conversation from now on."""

    message: dict


@dataclass(frozen=True)
class CallStart:
    """A call is about to be decided on and run."""

    call: Call


@dataclass(frozen=True)
class CallEnd:
    """A call has its result; `ok` if it ran and did not fail."""

    call: Call
    result: str
    ok: bool
    seconds: float


@dataclass(frozen=True)
class Done:
    """The loop ended: stop, length, interrupted, runaway, loop, or rounds (the limit on them). `empty`: the last
    message of the model is neither an answer nor a call."""

    reason: str
    empty: bool = False


Event = ChatEvent | Round | Said | CallStart | CallEnd | Done


class Agent:
    """A chat, its tools, and who decides about calls.

    `decide(call, context)` may ask the user, and is called from the thread that runs the loop; so is
    `output(call, text)`, which is given what a running call prints.
    """

    def __init__(
        self,
        chat: Chat,
        toolbox: Toolbox,
        context: Context,
        decide: Callable[[Call, Context], Decision],
        output: Callable[[Call, str], None] = lambda call, text: None,
        max_rounds: int | None = None,
    ):
        self.chat, self.toolbox, self.context = chat, toolbox, context
        self.decide, self.output, self.max_rounds = decide, output, max_rounds or MAX_ROUNDS

    def run(
        self,
        messages: list[dict],
        options: Options,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Event]:
        """Answer the messages, which end with the user's. Every message it adds comes as Said, results of calls too:
        a call of the model always gets one, whatever happens."""
        messages = list(messages)
        for number in range(1, self.max_rounds + 1):
            yield Round(number)
            its = options if options.seed is None else replace(options, seed=(options.seed + number - 1) % 2**63)
            yield from self.chat.reply(messages, its, self.toolbox.schemas, progress, cancelled)
            message, finish = self.chat.message, self.chat.finish
            messages.append(message)
            yield Said(message)
            if message.get("fault"):
                yield ToolCallStart(0, UNREADABLE)  # the parser has told no beginning of it
            calls = self._calls(message, RUNAWAY if finish == "runaway" else "")
            for call in calls:
                yield CallStart(call)
                start = time.monotonic()
                result, ok = self._run(call, cancelled)
                yield CallEnd(call, result, ok, time.monotonic() - start)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
                yield Said(messages[-1])
            if cancelled():
                yield Done("interrupted", is_empty(message))
                return
            if not calls:
                yield Done(finish, is_empty(message))
                return
        yield Done("rounds")

    def _calls(self, message: dict, fault: str) -> list[Call]:
        """The message's calls; of a block in which none can be read, one that stands for it. `fault`: of all."""
        if message.get("fault"):
            return [Call("", name, {}, fault or why, text=text) for name, text, why in calls_in(message)]
        return [self.toolbox.call(call, fault or call.get("fault", "")) for call in message.get("tool_calls", ())]

    def _run(self, call: Call, cancelled: Callable[[], bool]) -> tuple[str, bool]:
        """The result of a call for the model, and whether it succeeded."""
        if call.fault:
            return NOT_RUN + call.fault, False
        if cancelled():
            return f"{NOT_RUN}the user interrupted", False
        context = replace(self.context, output=lambda text: self.output(call, text), cancelled=cancelled)
        try:
            decision = self.decide(call, context)
            if not decision.allowed:
                return NOT_RUN + shortened(decision.reason), False
            return shortened(call.tool.run(call.arguments, context)), True
        except ToolError as error:
            return shortened(f"error: {error}"), False
        except OSError as error:
            return shortened(f"error: {error.filename or 'input/output'}: {error.strerror or error}"), False
        except Exception as error:  # a defect of a tool must not take the conversation with it
            return shortened(f"error: {call.name} failed: {type(error).__name__}: {error}"), False


def is_empty(message: dict) -> bool:
    """Whether a message of the model is neither an answer nor a call, nor the beginning of one."""
    return not (message.get("content") or "").strip() and not calls_in(message)


def shortened(text: str, limit: int = MAX_RESULT) -> str:
    """Text as the model can be given it: of one that is too long both ends, and how much is left out; what is not
    Unicode is replaced."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"
