"""The turn in progress: takes what the agent tells, gives what is finished for good, shows what is not."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from v4cli.agent.loop import CallEnd, CallStart, Done
from v4cli.chat.messages import calls_in
from v4cli.chat.parser import End, Text, Thinking, ToolCallArguments, ToolCallStart
from v4cli.repl import items
from v4cli.repl.markdown import Block, Blocks
from v4cli.repl.render import Renderer, summary

TAIL = 5  # lines of reasoning, arguments or output shown while they come
KEPT = 1 << 11  # characters of them
ENDS = {
    "interrupted": "(interrupted)",
    "length": "(stopped at the limit of tokens: /set max_tokens N, or go on with a message)",
    "runaway": "(stopped: the block of tool calls had no end)",
    "loop": "(stopped: it said the same over and over; /set loops keep lets it go on, /retry tries again)",
    "rounds": "(stopped: too many turns for one question; go on with a message)",
}


EMPTY_ENDS = {
    "stop": "(the model ended without an answer)",
    "length": "(stopped at the limit of tokens, before an answer: /set max_tokens N allows more)",
}


def ending(done: Done) -> str:
    """A line about an answer that did not end as it should."""
    return (done.empty and EMPTY_ENDS.get(done.reason)) or ENDS.get(done.reason, "")


@dataclass
class Drawn:
    """A call on the screen."""

    name: str
    arguments: str = ""
    output: str = ""
    started: float = 0.0
    asked: bool = False  # the user has seen it in full


class Live:
    """`take` an item: the text that goes to the scrollback now, often none. `view`: what is still changing."""

    def __init__(self, draw: Renderer):
        self.draw = draw
        self.show_thinking = False
        self.joined = True  # nothing above to keep a distance from
        self.clear()

    def clear(self) -> None:
        """A new turn begins."""
        self.thought = ""
        self.blocks = Blocks()
        self.calls: list[Drawn] = []
        self.output = ""  # of a command of the user's

    def take(self, item) -> str:
        """Everything is shown in the order in which it was said."""
        match item:
            case Thinking(text):
                self.thought += text
            case items.Thought():
                return self._thought(item)
            case Text(text):
                return self._blocks(self.blocks.feed(text))
            case items.Code(language):
                return self._blocks(self.blocks.feed(f"```{language}\n"))
            case ToolCallStart(_, name):
                self.calls.append(Drawn(name))
                return self._blocks(self.blocks.finish())
            case ToolCallArguments(index, fragment):
                self.calls[index].arguments += fragment
            case End():
                return self._blocks(self.blocks.finish())
            case CallStart():
                self.calls[0].started = time.monotonic()
            case items.Output(text):
                self._output(text)
            case CallEnd():
                return self._result(item)
            case Done() if told := ending(item):
                return self._piece(self.draw.dim(told))
            case _:
                return self._other(item)
        return ""

    def _other(self, item) -> str:
        """What does not come from the model."""
        match item:
            case items.Welcome(rows):
                return self._piece(self.draw.rows(rows))
            case items.Asked(text):
                return self._piece(self.draw.asked(text))
            case items.Note(text, error):
                return self._piece(self.draw.text(text, "red" if error else "dim"))
            case items.Ask(request) if not self.calls[0].asked:  # else anew, after a change of the mode
                self.calls[0].asked = True
                head = self.draw.call(request.call.name, "", "?", "yellow")
                return self._piece(head + "\n" + self.draw.exact(request.preview))
            case items.Earlier(messages, left_out):
                return self._earlier(messages, left_out)
            case items.Show(thinking):
                self.show_thinking = thinking
            case items.Finished():
                self.clear()
        return ""

    def view(self, height: int) -> str:
        """What is in progress: its last lines, `height` at most."""
        parts = []
        if self.thought:
            parts.append("\n" + self._growing(self.thought, self.draw.thought))
        if self.blocks.open.text.strip():
            open_block = self.blocks.open
            parts.append(("" if open_block.joins else "\n") + self.draw.markdown(open_block.text))
        parts += ["\n" + self._drawn(call, i == 0) for i, call in enumerate(self.calls) if not (i == 0 and call.asked)]
        output = self.calls[0].output if self.calls else self.output
        if output:
            parts.append(_tail(self.draw.dim(output), TAIL))
        return _tail("\n".join(parts).removeprefix("\n" if self.joined else ""), height)

    def _drawn(self, call: Drawn, first: bool) -> str:
        seconds = time.monotonic() - call.started
        name = f"{call.name} ({seconds:.0f} s)" if first and call.started and seconds >= 1 else call.name
        head = self.draw.call(name, call.arguments, "○")
        text = summary(call.arguments)
        return head if len(text) < self.draw.width // 2 else f"{head}\n{self._growing(text, self.draw.dim)}"

    def _growing(self, text: str, draw: Callable[[str], str]) -> str:
        """The last lines of a text that comes; where they are cut moves seldom, so that the ends of lines do, too."""
        start = max(0, len(text) - KEPT) // KEPT * KEPT
        return _tail(draw(text[start:]), TAIL)

    def _thought(self, thought: items.Thought) -> str:
        text, self.thought = self.thought.strip(), ""
        if not text:
            return ""
        seconds = f"{thought.seconds:.{0 if thought.seconds >= 10 else 1}f}"
        said = f"thought for {seconds} s, {thought.tokens:,} tokens" if thought.tokens else "thought"
        return self._piece(self.draw.dim(f"∴ {said}") + (f"\n{self.draw.thought(text)}" if self.show_thinking else ""))

    def _output(self, text: str) -> None:
        if self.calls:
            self.calls[0].output = (self.calls[0].output + text)[-KEPT:]
        else:
            self.output = (self.output + text)[-KEPT:]

    def _result(self, end: CallEnd) -> str:
        call = self.calls.pop(0)
        result = self.draw.result(end.result, end.ok)
        if call.asked:
            return result + "\n"
        return self._piece(self._call(call, end.ok) + "\n" + result)

    def _call(self, call: Drawn, ok: bool) -> str:
        return self.draw.call(call.name, call.arguments, style="green" if ok else "red")

    def _blocks(self, blocks: list[Block]) -> str:
        return "".join(
            self._piece(self.draw.markdown(block.text), block.joins) for block in blocks if block.text.strip()
        )

    def _piece(self, text: str, joins: bool = False) -> str:
        """Finished text, one empty line below what is above it."""
        gap = "" if joins or self.joined else "\n"
        self.joined = False
        return gap + text + "\n"

    def _earlier(self, messages: list[dict], left_out: int) -> str:
        """A conversation that was kept, folded."""
        said = self._piece(self.draw.dim(f"… {left_out:,} earlier messages, Ctrl-O shows them")) if left_out else ""
        waiting: list[Drawn] = []
        for message in messages:
            text = message.get("content") or ""
            if message["role"] == "user":
                said += self._piece(self.draw.asked(message.get("shown") or text))
            elif message["role"] == "assistant":
                self.thought = message.get("reasoning_content") or ""
                said += self._thought(items.Thought(0, 0))
                said += self._piece(self.draw.markdown(text)) if text.strip() else ""
                waiting = [Drawn(name, arguments) for name, arguments, _ in calls_in(message)]
            elif message["role"] == "tool" and waiting:
                ok = not text.startswith("error:")
                said += self._piece(self._call(waiting.pop(0), ok) + "\n" + self.draw.result(text, ok))
        return said


def _tail(text: str, height: int) -> str:
    """The last lines."""
    return "\n".join(text.split("\n")[-max(height, 1) :])
