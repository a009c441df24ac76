"""A conversation: what is said goes through the agent and into the transcript; any of it can be taken back."""

import json
from collections.abc import Callable, Iterator

from v4cli.agent.loop import Agent, Event, Said
from v4cli.agent.transcript import Transcript
from v4cli.chat.messages import calls_in, content_text, without_ids
from v4cli.chat.parser import Event as ChatEvent
from v4cli.chat.tokenizer import Tokenizer
from v4cli.errors import UsageError
from v4cli.options import Options

SUMMARY_REQUEST = (
    "Summarise our conversation so far, for yourself to go on from: what was asked, what was found out and decided, "
    "which files matter and how, and what is left to do. Call no tools; answer with the summary only."
)
SUMMARY_HEAD = "Summary of our conversation so far:\n\n"

Progress = Callable[[int, int], None]
Cancelled = Callable[[], bool]


class Conversation:
    """The messages of a transcript, answered by an agent. `options` may be replaced at any time between answers."""

    def __init__(self, transcript: Transcript, agent: Agent, options: Options):
        self.agent, self.options = agent, options
        self.start(transcript)

    def start(self, transcript: Transcript) -> None:
        """Go on with this transcript."""
        self.transcript = transcript
        fit(transcript, self.agent.chat.tokenizer)

    @property
    def messages(self) -> list[dict]:
        """What the model is shown: the system prompt, then the transcript's messages."""
        system = self.transcript.about.get("system")
        return ([{"role": "system", "content": system}] if system else []) + self.transcript.messages

    def ask(
        self,
        text: str,
        progress: Progress | None = None,
        cancelled: Cancelled = lambda: False,
        shown: str = "",
    ) -> Iterator[Event]:
        """The user says `text`; `shown`: as typed, where that differs. Everything said is recorded as it comes."""
        if not text.strip():
            raise UsageError("the message is empty")
        settle(self.transcript)
        self.transcript.add({"role": "user", "content": text} | ({"shown": shown} if shown else {}))
        return self._answer(progress, cancelled)

    def retry(self, progress: Progress | None = None, cancelled: Cancelled = lambda: False) -> Iterator[Event]:
        """Answer the user's last message once more."""
        self.transcript.cut(self._last_question() + 1)
        return self._answer(progress, cancelled)

    def undo(self) -> str:
        """Take back the user's last message and all that followed; its text as typed."""
        gone = self.transcript.cut(self._last_question())
        return gone[0].get("shown") or content_text(gone[0].get("content"))

    def fork(self) -> str:
        """Go on in a copy; its ID. The original stays as it is."""
        self.start(self.transcript.fork())
        return self.transcript.id

    def compact(self, progress: Progress | None = None, cancelled: Cancelled = lambda: False) -> Iterator[ChatEvent]:
        """Let the model summarise the conversation, which then goes on from the summary alone. An interrupted or empty
        summary changes nothing."""
        self._last_question()
        request = {"role": "user", "content": SUMMARY_REQUEST}
        chat = self.agent.chat
        yield from chat.reply([*self.messages, request], self.options, self.agent.toolbox.schemas, progress, cancelled)
        summary = chat.message["content"].strip()
        if chat.finish != "stop" or not summary:
            raise UsageError(f"no summary was made ({chat.finish}); all is as it was", "/compact tries again")
        self.transcript.cut(0)
        self.transcript.add({"role": "user", "content": SUMMARY_HEAD + summary, "shown": "(summary)"})

    def _answer(self, progress: Progress | None, cancelled: Callable[[], bool]) -> Iterator[Event]:
        for event in self.agent.run(self.messages, self.options, progress, cancelled):
            if isinstance(event, Said):
                self.transcript.add(event.message)
            yield event

    def _last_question(self) -> int:
        at = next((i for i in reversed(range(len(self.transcript.messages))) if self._asked(i)), None)
        if at is None:
            raise UsageError("nothing has been said yet", "type a message, or /resume another conversation")
        return at

    def _asked(self, i: int) -> bool:
        return self.transcript.messages[i]["role"] == "user"


def fit(transcript: Transcript, tokenizer: Tokenizer) -> None:
    """Let a conversation go on with a model of this tokenizer: ids of another one mean nothing."""
    digest = tokenizer.digest[:16]
    if transcript.about.get("tokenizer", digest) != digest:
        for message in transcript.cut(0):
            transcript.add(without_ids(message))
    if transcript.about.get("tokenizer") != digest:
        transcript.set(tokenizer=digest)


def settle(transcript: Transcript) -> None:
    """A call that has no result, because the program ended before it had, is said to have none."""
    messages = transcript.messages
    last = next((i for i in reversed(range(len(messages))) if messages[i]["role"] != "tool"), None)
    calls = (messages[last].get("tool_calls") if last is not None else None) or ()
    answered = {message.get("tool_call_id") for message in messages[last:]} if calls else ()
    for call in calls:
        if call.get("id") not in answered:
            result = {"role": "tool", "tool_call_id": call.get("id"), "content": "error: it was not finished"}
            transcript.add(result)


def to_json(transcript: Transcript) -> str:
    """The whole conversation as one JSON object, without token ids."""
    about = {"about": transcript.about, "messages": list(map(without_ids, transcript.messages))}
    return json.dumps(about, ensure_ascii=False, indent=2) + "\n"


def to_markdown(transcript: Transcript) -> str:
    """The conversation to read: reasoning as quotes, calls and results as code blocks."""
    parts = [f"# {transcript.about['title'] or transcript.id}"]
    if transcript.about.get("system"):
        parts += ["## System", transcript.about["system"]]
    for message in transcript.messages:
        content = content_text(message.get("content"))
        if message["role"] == "user":
            parts += ["## User", content]
        elif message["role"] == "tool":
            parts.append(fenced(content))
        else:
            parts += ["## Assistant"] if content or message.get("reasoning_content") else []
            if message.get("reasoning_content"):
                parts.append("\n".join(f"> {line}".rstrip() for line in message["reasoning_content"].split("\n")))
            parts += [content] if content else []
            for name, arguments, fault in calls_in(message):
                parts += [f"**{name}**" + (f" (not whole: {fault})" if fault else ""), fenced(arguments, "json")]
    return "\n\n".join(parts) + "\n"


def fenced(text: str, language: str = "") -> str:
    """A code block that the text cannot end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
