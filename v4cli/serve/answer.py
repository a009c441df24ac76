"""One request while it is answered, in a thread: it waits for a session, prefills, samples, and says what comes of it
as events. Nothing that happens to it touches another.
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from v4cli.chat import parser as parsed
from v4cli.chat import special
from v4cli.chat.constraints import Allowed
from v4cli.chat.dsml import MAX_CALLS
from v4cli.chat.loops import is_loop
from v4cli.chat.messages import readable_arguments
from v4cli.chat.parser import StreamParser
from v4cli.chat.tokenizer import Tokenizer
from v4cli.chat.turn import MAX_BLOCK, sampled
from v4cli.engine.generation import Step, generation
from v4cli.engine.sampler import Sampling, logprob, top_logprobs
from v4cli.engine.session import Session
from v4cli.errors import Interrupted, ResourceError, UsageError, V4Error
from v4cli.serve import events
from v4cli.serve.events import End, Event
from v4cli.serve.memory import Memory, Turn
from v4cli.serve.metrics import Metrics
from v4cli.serve.outbox import Outbox
from v4cli.serve.pool import Pool, common
from v4cli.serve.prompts import Encoded

ROWS = 64  # of a prompt whose logits are held at a time
SHOWN = 40  # characters of a text that a log line shows


class Answer:
    """Answers when it is run, in a thread. What it says goes to `box`; the last event is an End, which does not wait
    until the context is stored; `ended` does."""

    def __init__(
        self,
        prompts: Sequence[Encoded],
        tokenizer: Tokenizer,
        pool: Pool,
        memory: Memory,
        metrics: Metrics,
        box: Outbox,
        allowed: Callable[[Encoded], Allowed | None],
        log: Callable[[str], None],
        stops_loops: bool,
    ):
        self.prompts, self.tokenizer, self.pool, self.memory = prompts, tokenizer, pool, memory
        self.encoded = encoded = prompts[0]  # that which is being answered
        self.metrics, self.box, self.log, self._allowed = metrics, box, log, allowed
        self._stops_loops = stops_loops and not encoded.asked.token_ids  # who counts tokens sees loops, too
        self.cancel, self.ended = threading.Event(), threading.Event()
        self._n_sampled = self._n_reasoning = self._cached = 0
        self._is_told, self._start = False, time.monotonic()
        self._thinks = False  # the token sampled last is of the reasoning
        self._specials, self._end_think = tokenizer.special_ids, tokenizer.special_id(special.END_THINK)

    def run(self) -> None:
        end: End
        try:
            with self.metrics.running():
                self._answer()
            end = self._usage()
        except Interrupted:
            self.metrics.cancelled += 1
            end = events.Failed("cancelled", 499)
        except UsageError as error:
            end = events.Failed(str(error), 400)
        except ResourceError as error:
            end = events.Failed(str(error), 503, "overloaded")
        except V4Error as error:
            end = events.Failed(str(error), 500)
        except Exception as error:
            self.metrics.failed += 1
            end = events.Failed(f"unexpected {type(error).__name__}", 500)
            self.log(f"unexpected {type(error).__name__}: {error}")
        self._end(end)
        self.ended.set()

    def _usage(self) -> events.Usage:
        n_prompt = sum(len(encoded.ids) for encoded in self.prompts)
        return events.Usage(n_prompt, self._cached, self._n_sampled, self._n_reasoning)

    def _answer(self) -> None:
        for i, encoded in enumerate(self.prompts):
            self.encoded = encoded
            with self.pool.session(self.encoded.ids, self.cancel.is_set) as session:
                self._answer_in(session, i * self.encoded.asked.n)
                if session.is_worth_keeping() and self.encoded is self.prompts[-1]:
                    self._end(self._usage())

    def _answer_in(self, session: Session, first: int) -> None:
        """All choices of the prompt, counted from `first` on."""
        asked = self.encoded.asked
        self._say_why_it_missed(session)
        echoed = self._echoed(session)
        self._sync(session)
        self._cached += 0 if echoed[1:] else session.stats.cached_tokens
        for choice in range(first, first + asked.n):
            own = session if choice == first + asked.n - 1 else session.fork()
            for event in echoed:
                self.box.put(choice, event)
            self._choice(choice, own)
        for note in session.notes:
            self.log(note)
        session.notes.clear()

    def _echoed(self, session: Session) -> list[Event]:
        """The prompt again, if that was asked for: its text, and of all its tokens how likely they were, which takes
        computing them all. Interrupted."""
        ids, asked = self.encoded.ids, self.encoded.asked
        if not asked.echo:
            return []
        is_text = isinstance(asked.prompt, str)
        echoed: list[Event] = [events.Text(asked.prompt if is_text else self.tokenizer.decode(ids))]
        if asked.top_logprobs is None:
            return echoed
        echoed.append(events.Logprob(b"" if is_text else self._bytes(ids[0]), None, (), ids[0], True))
        session.sync(ids[:1])
        for at in range(1, len(ids), ROWS):
            if self.cancel.is_set():
                raise Interrupted("the client has hung up")
            before, part = session.logits, ids[at : at + ROWS]
            after = session.feed(part, all_logits=True)
            for token, logits in zip(part, [before, *after[:-1]], strict=True):
                named = self._named(logits)
                echoed.append(events.Logprob(self._bytes(token), logprob(logits, token), named, token, True))
        return echoed

    def _end(self, end: End) -> None:
        """Tell it, unless that has been done."""
        if not self._is_told:
            self._is_told = True
            if isinstance(end, events.Usage):
                self.metrics.answered(end, time.monotonic() - self._start)
            self.box.put(0, end)

    def _sync(self, session: Session) -> None:
        """Be at the prompt. Where there is no memory, others give way, or are waited for. Interrupted."""
        cancelled, anchors = self.cancel.is_set, self.encoded.anchors

        def prefilled(done: int, total: int) -> None:
            self.metrics.prefilled(done, total)
            self.pool.passed(session)

        while True:
            try:
                if not session.sync(self.encoded.ids, prefilled, cancelled, anchors):
                    raise Interrupted("the client has hung up")
                return
            except ResourceError:
                if not self.pool.drop_one() and not self.pool.wait_for_another(cancelled):
                    raise

    def _say_why_it_missed(self, session: Session) -> None:
        """A context that could have been used but for something in its middle is worth a line."""
        ids, at = self.encoded.ids, common(session.tokens, self.encoded.ids)
        if not 0 < at < min(len(session.tokens), len(ids)):
            return
        was, now = (self._shown(tokens[at:]) for tokens in (session.tokens, ids))
        self.log(f"prefix: {at:,} of {len(ids):,} tokens are there; then comes {now} in place of {was}")

    def _shown(self, ids: Sequence[int]) -> str:
        return repr(self.tokenizer.decode(list(ids[:SHOWN]))[:SHOWN])

    # -- one choice -----------------------------------------------------------------------------------------------

    def _choice(self, choice: int, session: Session) -> None:
        encoded, asked = self.encoded, self.encoded.asked
        reads = bool(asked.tools) and asked.choice != "none"
        parser = StreamParser(encoded.thinking, bool(encoded.forced), asked.stop, reads)
        voice = _Voice(lambda event: self.box.put(choice, event), asked.one_call)
        if encoded.forced:
            opened = encoded.forced.split("\n", 3)[3]  # what follows the tag of the block
            voice.say(parser.push(opened))
        decoder, ids, finish, loop = self.tokenizer.stream(), [], "interrupted", False
        self._thinks, tells_tokens = encoded.thinking, asked.token_ids or asked.top_logprobs is not None
        unread: list[int] = []

        def read() -> None:
            voice.say(parser.push("".join(map(decoder.push, unread))))
            unread.clear()

        def take(step: Step) -> bool:
            nonlocal finish, loop
            ids.append(step.token)
            self.pool.passed(session)
            self._count(step.token)
            if step.token != self.tokenizer.eos_id:
                unread.append(step.token)
            decides = asked.stop or (reads and (parser.is_open or self._may_be_markup(step.token)))
            if decides or tells_tokens or self.box.is_due:
                read()
            if tells_tokens:
                self._tell_token(choice, session, step)
            runaway = parser.block_length > MAX_BLOCK or len(parser.faults) > MAX_CALLS
            loop = self._stops_loops and is_loop(ids)
            ended = "stop" if parser.stopped or voice.has_said_enough else step.finish
            finish = ended or ("length" if runaway or loop else "interrupted")
            return finish != "interrupted"

        self._drive(session, choice, take)
        if loop:
            self.log("an answer that says the same over and over is ended (--loops keep lets it go on)")
        if self.cancel.is_set() and finish == "interrupted":
            raise Interrupted("the client has hung up")
        finish = "length" if finish == "interrupted" else finish
        read()
        voice.say(parser.push(decoder.flush()))
        voice.say(parser.finish(finish))
        voice.end(parser, finish)
        self._remember(voice, parser, ids)

    def _drive(self, session: Session, choice: int, take: Callable[[Step], bool]) -> None:
        """Have the tokens of a choice taken. Where memory holds no more of them, it ends as at a limit."""
        encoded, n_before = self.encoded, self._n_sampled
        sampling, stops = _nth(encoded.sampling, choice % encoded.asked.n), (self.tokenizer.eos_id,)
        work = generation(session, sampling, encoded.limit, stops, self.cancel.is_set, self._allowed(encoded))
        try:
            session.engine.scheduler.drive(work, take)
        except ResourceError as error:
            if self._n_sampled == n_before:
                raise
            self.log(f"an answer ends early: {error}")

    def _may_be_markup(self, token: int) -> bool:
        """Whether a tag may begin in it."""
        return token in self._specials or b"<" in self.tokenizer.token_bytes(token)

    def _count(self, token: int) -> None:
        self._n_sampled += 1
        self.metrics.sampled += 1
        if self._thinks:
            self._thinks = token != self._end_think
            self._n_reasoning += self._thinks and token != self.tokenizer.eos_id

    def _tell_token(self, choice: int, session: Session, step: Step) -> None:
        """With its log-probability: every one, or those of the answer's text, if that was asked for."""
        asked = self.encoded.asked
        is_text = not self._thinks and step.token not in self._specials
        if not asked.token_ids and (asked.top_logprobs is None or not is_text):
            return
        named = self._named(session.logits)
        self.box.put(choice, events.Logprob(self._bytes(step.token), min(step.logprob, 0.0), named, step.token))

    def _named(self, logits: np.ndarray | None) -> tuple[tuple[bytes, float, int], ...]:
        """The likeliest tokens, as many as were asked for."""
        top = top_logprobs(logits, self.encoded.asked.top_logprobs or 0) if logits is not None else []
        return tuple((self._bytes(token), likely, token) for token, likely in top)

    def _bytes(self, token: int) -> bytes:
        if token in self._specials:
            return self.tokenizer.decode([token]).encode()
        return self.tokenizer.token_bytes(token)

    def _remember(self, voice: "_Voice", parser: StreamParser, ids: list[int]) -> None:
        """For the next turn, unless what the client has seen is not what was sampled."""
        encoded, asked = self.encoded, self.encoded.asked
        if encoded.prefixed or parser.stopped_by or voice.left_out or (asked.one_call and voice.calls):
            return
        about = sampled(self.tokenizer, encoded.forced_ids + ids, parser, encoded.thinking)
        if about:
            turn = Turn(about["sampled"], "".join(voice.text), "".join(voice.reasoning), tuple(voice.calls))
            self.memory.remember(encoded.messages, turn)


class _Voice:
    """Says what the parser reads. A call is said when it is whole; one that is in doubt must not be run: it is not said
    at all, and where there is no other, its text is the answer."""

    def __init__(self, tell: Callable[[Event], None], one_call: bool):
        self.tell, self.one_call = tell, one_call
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[events.Call] = []
        self.left_out = False

    @property
    def has_said_enough(self) -> bool:
        return self.one_call and bool(self.calls)

    def say(self, read: Iterable[parsed.Event]) -> None:
        for event in read:
            match event:
                case parsed.Thinking(text):
                    self.reasoning.append(text)
                    self.tell(event)
                case parsed.Text(text):
                    self.text.append(text)
                    self.tell(event)
                case parsed.ToolCallEnd():
                    self._call(event)

    def _call(self, event: parsed.ToolCallEnd) -> None:
        if event.fault or not isinstance(readable_arguments(event.arguments or "{}"), dict):
            self.left_out = True
        elif not self.has_said_enough:
            call = events.Call(f"call_{secrets.token_hex(12)}", event.name, event.arguments or "{}")
            self.calls.append(call)
            self.tell(call)

    def end(self, parser: StreamParser, finish: str) -> None:
        if finish == "stop" and not self.calls and parser.tool_block:
            self.left_out = True
            self.tell(events.Text(parser.tool_block))
        reason = "tool_calls" if self.calls and finish == "stop" else finish
        self.tell(events.Finish(reason, parser.stopped_by or None))


def _nth(sampling: Sampling, choice: int) -> Sampling:
    """Choices of a request differ, and come again with its seed."""
    if sampling.seed is None or not choice:
        return sampling
    seed = (sampling.seed + choice) % 2**63
    return Sampling(sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, seed)
