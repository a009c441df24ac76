"""The engine as a service: requests of any dialect in, answers out, as events or whole."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

from v4cli.engine.engine import Engine
from v4cli.errors import ContextError
from v4cli.serve.answer import Answer
from v4cli.serve.asked import Asked
from v4cli.serve.constraints import Constraints
from v4cli.serve.dialect import Machine
from v4cli.serve.events import End, Event, Failed, Usage
from v4cli.serve.memory import Memory
from v4cli.serve.metrics import Metrics
from v4cli.serve.outbox import Outbox
from v4cli.serve.pool import Pool
from v4cli.serve.prompts import Encoded, Prompts
from v4cli.serve.served import Served
from v4cli.serve.workers import Workers

BEAT_S = 2.0  # without anything sent
MOST_QUEUED = 256  # requests
MOST_A_SECOND = 80  # deliveries of what answers say, all together,
LONGEST_S = 0.1  # as far as for each no more than that lies between two


class Busy(Exception):
    """The queue is full."""


class UnknownModel(Exception):
    """A request names a model that is not served."""


class Service:
    """One model. What is asked of it may come from any thread; `answering` from that of the event loop."""

    def __init__(self, served: Served, name: str, sessions: int, log: Callable[[str], None], stops_loops: bool = True):
        """`name` of the model, as clients call it; `sessions`: contexts kept in memory, and turns at a time;
        `stops_loops`: an answer that says the same over and over ends as at a limit of tokens."""
        self.served, self.tokenizer, self.name, self.log = served, served.tokenizer, name, log
        self.stops_loops = stops_loops
        self.memory, self.metrics = Memory(), Metrics()
        self.workers = Workers()
        self.pool = Pool(served.session, sessions, self.workers.submit)
        self.prompts = Prompts(served.config, served.tokenizer, served.defaults, self.memory)
        self.constraints = Constraints(served.tokenizer, served.config.vocab_size, log)
        self.created = int(time.time())
        self.draining = False
        self._answers: set[Answer] = set()
        self._lock = threading.RLock()  # a signal may come while its thread has it

    @property
    def engine(self) -> Engine | None:
        """While the model is loaded."""
        return self.served.engine

    # -- models ---------------------------------------------------------------------------------------------------

    def models(self) -> list[dict]:
        """As both dialects list them."""
        context = self.served.config.max_position_embeddings
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.created))
        return [
            {
                "id": name, "object": "model", "type": "model", "created": self.created, "created_at": made,
                "owned_by": "v4cli", "display_name": name, "lifecycle": "active", "context_length": context,
                "max_model_len": context,
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

    def encoded(self, asked: Asked) -> list[Encoded]:
        """Its prompts, one or several. RequestError, ContextError, UnknownModel."""
        self.check_model(asked.model)
        return [self._encoded(one) for one in (asked, *asked.others)]

    def _encoded(self, asked: Asked) -> Encoded:
        encoded = self.prompts.encode(asked)
        if not self.served.has_room(len(encoded.ids) + 1):
            raise ContextError(f"no memory holds its {len(encoded.ids):,} tokens and an answer, with --ram as it is")
        self.constraints.check(encoded)
        return encoded

    def check_room(self) -> None:
        """Busy, where one more request would wait too long."""
        if self.draining or self.pool.n_waiting >= MOST_QUEUED:
            raise Busy("the server is shutting down" if self.draining else "too many requests are waiting")

    def answering(self, encoded: list[Encoded]) -> "Answering":
        """The answer, begun."""
        box = Outbox(asyncio.get_running_loop(), self._every)
        answer = Answer(
            encoded, self.tokenizer, self.pool, self.memory, self.metrics, box, self.constraints.of, self.log,
            self.stops_loops,
        )  # fmt: skip

        def run() -> None:
            answer.run()
            with self._lock:
                self._answers.discard(answer)

        with self._lock:
            self._answers.add(answer)
        self.workers.submit(run)
        return Answering(answer, box)

    def _every(self) -> float:
        return min(len(self._answers) / MOST_A_SECOND, LONGEST_S)

    def give_back_when_idle(self, seconds: float, ended: threading.Event) -> None:
        """Until `ended`: give back the model's memory when so long nothing has been asked for."""
        left = seconds
        while not ended.wait(left):
            left = seconds - self.pool.idle_s
            if left <= 0:
                self.served.give_back(self.pool)
                left = seconds

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
                answer.ended.wait(max(0.0, end - time.monotonic()))
        return all(answer.ended.is_set() for answer in answers)

    @contextlib.contextmanager
    def _running(self) -> Iterator[list[Answer]]:
        with self._lock:
            answers = list(self._answers)
        yield answers


class Answering:
    """An answer that is being made, for the event loop."""

    def __init__(self, answer: Answer, box: Outbox):
        self.answer, self.box = answer, box

    def cancel(self) -> None:
        self.answer.cancel.set()

    async def stream(self, machine: Machine) -> AsyncIterator[str]:
        """What is to be sent, as it comes; a sign of life where nothing comes for long."""
        loop = asyncio.get_running_loop()
        yield "".join(machine.begin())
        sent = looks = loop.time()
        ended = False
        while not ended:
            if loop.time() >= looks:  # to look again only then is cheaper than to put it off with every event
                looks = sent + BEAT_S
                self.box.wake_at(looks)
            out: list[str] = []
            for choice, event in await self.box.take():
                more, ended = _told(machine, choice, event)
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
            for choice, event in await self.box.take():
                if isinstance(event, Failed):
                    return event
                if _told(machine, choice, event)[1]:
                    return machine.final()


def _told(machine: Machine, choice: int, event: Event | End) -> tuple[list[str], bool]:
    """What a machine makes of an event, and whether it was the last."""
    if isinstance(event, Usage | Failed):
        return machine.end(event), True
    return machine.take(choice, event), False
