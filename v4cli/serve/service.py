"""The engine as a service: requests of any dialect in, answers out, as events or whole."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

from v4cli.chat.turn import Chat
from v4cli.engine.session import Session
from v4cli.serve.answer import Answer
from v4cli.serve.asked import Asked
from v4cli.serve.constraints import Constraints
from v4cli.serve.dialect import Machine
from v4cli.serve.events import End, Event, Failed, Usage
from v4cli.serve.memory import Memory
from v4cli.serve.metrics import Metrics
from v4cli.serve.pool import Pool
from v4cli.serve.prompts import Encoded, Prompts

BEAT_S = 2.0  # without anything sent
MOST_QUEUED = 256  # requests


class Busy(Exception):
    """The queue is full."""


class UnknownModel(Exception):
    """A request names a model that is not served."""


class Service:
    """One loaded model. What is asked of it may come from any thread; `answering` from that of the event loop."""

    def __init__(
        self, chat: Chat, name: str, sessions: int, new_session: Callable[[], Session], log: Callable[[str], None]
    ):
        """`name` of the model, as clients call it; `sessions`: contexts kept in memory, and turns at a time."""
        self.engine, self.tokenizer, self.name, self.log = chat.engine, chat.tokenizer, name, log
        self.memory, self.metrics = Memory(), Metrics()
        self.pool = Pool(new_session, sessions)
        self.prompts = Prompts(chat.engine, chat.tokenizer, chat.defaults, self.memory)
        self.constraints = Constraints(chat.tokenizer, chat.engine.config.vocab_size, log)
        self.created = int(time.time())
        self.draining = False
        self._answers: set[Answer] = set()
        self._lock = threading.RLock()  # a signal may come while its thread has it

    # -- models ---------------------------------------------------------------------------------------------------

    def models(self) -> list[dict]:
        """As both dialects list them."""
        context = self.engine.config.max_position_embeddings
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.created))
        return [
            {
                "id": name, "object": "model", "type": "model", "created": self.created, "created_at": made,
                "owned_by": "v4cli", "display_name": name, "context_length": context, "max_model_len": context,
            }
            for name in self.names
        ]  # fmt: skip

    @property
    def names(self) -> list[str]:
        """What the model may be called; the first is what answers call it."""
        return [self.name]

    def check_model(self, asked: str) -> None:
        """UnknownModel. A name is only ever looked up: it is no path."""
        name = asked.removesuffix("[1m]")
        if name and name not in self.names and not name.startswith("claude-"):
            raise UnknownModel(f"the model {name[:80]!r} is not served here; there is {', '.join(self.names)}")

    # -- answers --------------------------------------------------------------------------------------------------

    def encoded(self, asked: Asked) -> Encoded:
        """RequestError, ContextError, UnknownModel."""
        self.check_model(asked.model)
        encoded = self.prompts.encode(asked)
        self.constraints.check(encoded)
        return encoded

    def check_room(self) -> None:
        """Busy, where one more request would wait too long."""
        if self.draining or self.pool.n_waiting >= MOST_QUEUED:
            raise Busy("the server is shutting down" if self.draining else "too many requests are waiting")

    def answering(self, encoded: Encoded) -> "Answering":
        """The answer, begun."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue()

        def tell(choice: int, event: Event | End) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(queue.put_nowait, (choice, event))
            if isinstance(event, Usage | Failed):
                with self._lock:
                    self._answers.discard(answer)

        answer = Answer(
            encoded, self.tokenizer, self.pool, self.memory, self.metrics, tell, self.constraints.of, self.log
        )
        with self._lock:
            self._answers.add(answer)
        answer.start()
        return Answering(answer, queue)

    def cancel_all(self) -> None:
        """End the answers that are being made."""
        with self._running() as answers:
            for answer in answers:
                answer.cancel.set()

    def wait(self, seconds: float) -> bool:
        """For the answers that are being made; whether they have ended by then."""
        end = time.monotonic() + seconds
        with self._running() as answers:
            for answer in answers:
                answer.join(max(0.0, end - time.monotonic()))
        return not any(answer.is_alive() for answer in answers)

    @contextlib.contextmanager
    def _running(self) -> Iterator[list[Answer]]:
        with self._lock:
            answers = list(self._answers)
        yield answers


class Answering:
    """An answer that is being made, for the event loop."""

    def __init__(self, answer: Answer, queue: asyncio.Queue):
        self.answer, self.queue = answer, queue

    def cancel(self) -> None:
        self.answer.cancel.set()

    async def stream(self, machine: Machine) -> AsyncIterator[str]:
        """What is to be sent, as it comes; a sign of life where nothing comes for long."""
        loop = asyncio.get_running_loop()
        yield "".join(machine.begin())
        sent, ended = loop.time(), False
        while not ended:
            out: list[str] = []
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(sent + BEAT_S):
                    choice, event = await self.queue.get()
                    out, ended = _told(machine, choice, event)
                while not ended and not self.queue.empty():
                    more, ended = _told(machine, *self.queue.get_nowait())
                    out += more
            if not ended and not out and loop.time() >= sent + BEAT_S:
                out = machine.beat()
            if out:
                yield "".join(out)
                sent = loop.time()

    async def whole(self, machine: Machine) -> dict | Failed:
        """The answer at once, made of what would have been sent."""
        machine.begin()
        while True:
            choice, event = await self.queue.get()
            if isinstance(event, Failed):
                return event
            if _told(machine, choice, event)[1]:
                return machine.final()


def _told(machine: Machine, choice: int, event: Event | End) -> tuple[list[str], bool]:
    """What a machine makes of an event, and whether it was the last."""
    if isinstance(event, Usage | Failed):
        return machine.end(event), True
    return machine.take(choice, event), False
