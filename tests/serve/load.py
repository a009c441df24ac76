"""A server under load: conversations that take turns, clients that hang up, a kill in the middle.

`python tests/serve/load.py` starts `v4 serve nano` and prints what it found as JSON; test_load.py has a small share.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil

from v4cli.serve.server import listening

V4 = [sys.executable, "-m", "v4cli"]
SYSTEM = "You are one of many. Answer in a few words. " * 4
READY_S = 120.0


def least(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens that have to be computed to have been at all of these: those of a common beginning once."""
    ordered = sorted(map(tuple, sequences))
    return sum(len(own) - _common(own, before) for own, before in zip(ordered, [(), *ordered]))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


@dataclass
class Answer:
    """What a client heard: its words, tokens of the prompt, cached of them, and of the answer; the longest silence."""

    text: str = ""
    prompt: int = 0
    cached: int = 0
    completion: int = 0
    silence_s: float = 0.0


def ask(http: httpx2.Client, body: dict, hang_up_after: int | None = None) -> Answer | None:
    """The answer to a streamed request; None if this client has hung up after so many events."""
    its, last, n_events = Answer(), time.monotonic(), 0
    more = {"stream": True, "stream_options": {"include_usage": True}}
    with http.stream("POST", "/v1/chat/completions", json=body | more) as reply:
        assert reply.status_code == 200, reply.read()
        for line in reply.iter_lines():
            now = time.monotonic()
            its.silence_s, last = max(its.silence_s, now - last), now
            n_events += bool(line)
            if hang_up_after is not None and n_events > hang_up_after:
                return None
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if usage := event.get("usage"):
                its.prompt, its.completion = usage["prompt_tokens"], usage["completion_tokens"]
                its.cached = usage["prompt_tokens_details"]["cached_tokens"]
            for choice in event["choices"]:
                its.text += choice["delta"].get("content") or ""
    return its


@dataclass
class Conversation:
    """Turn after turn, the last words said once more."""

    number: int
    rng: random.Random
    messages: list[dict] = field(default_factory=lambda: [{"role": "system", "content": SYSTEM}])
    known: int = 0  # tokens of it that the server has computed

    def body(self, max_tokens: int = 24) -> dict:
        return {"model": "nano", "messages": self.messages, "max_tokens": max_tokens, "temperature": 0,
                "thinking": {"type": "disabled"}}  # fmt: skip

    def turn(self, http: httpx2.Client) -> Answer:
        words = [f"{self.rng.randrange(10_000)}" for _ in range(self.rng.randint(3, 12))]
        self.messages.append({"role": "user", "content": f"Number {self.number}: {' '.join(words)}"})
        its = ask(http, self.body())
        assert its is not None
        self.messages.append({"role": "assistant", "content": its.text})
        self.known = its.prompt + its.completion - 1
        return its


def converse(http: httpx2.Client, n: int, turns: int, clients: int) -> tuple[list[Conversation], list[Answer]]:
    """So many conversations of so many turns, interleaved, by so many clients at a time."""
    all_of_them = [Conversation(i, random.Random(i)) for i in range(n)]
    answers: list[Answer] = []
    order = random.Random(0)
    with ThreadPoolExecutor(clients) as pool:
        for _ in range(turns):
            order.shuffle(waiting := list(all_of_them))
            answers += pool.map(lambda one: one.turn(http), waiting)
    return all_of_them, answers


def hang_up(http: httpx2.Client, n: int, clients: int) -> int:
    """So many requests, most of whose clients hang up at some moment; how many have been answered."""
    rng = random.Random(1)
    plans = [(i % 40, rng.choice((None, 0, 1, 2, 3, 5, 8, 13))) for i in range(n)]

    def one(plan: tuple[int, int | None]) -> bool:
        number, after = plan
        body = Conversation(number, random.Random(number)).body(16)
        body["messages"] = [*body["messages"], {"role": "user", "content": f"Tell me about number {number}."}]
        return ask(http, body, after) is not None

    with ThreadPoolExecutor(clients) as pool:
        return sum(pool.map(one, plans))


class Serving:
    """`v4 serve nano` in a process of its own; `peak`: the most memory it had, in bytes."""

    def __init__(self, home: Path, *options: str):
        with listening("127.0.0.1", 0) as free:
            port = free.getsockname()[1]
        self.home, self.peak = home, 0
        command = [*V4, "serve", "nano", "--port", str(port), *options]
        self.process = subprocess.Popen(command, env=os.environ | {"V4_HOME": str(home)}, stderr=subprocess.DEVNULL)
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=600, trust_env=False)
        end = time.monotonic() + READY_S
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        threading.Thread(target=self._watch, daemon=True).start()

    def _answers(self) -> bool:
        with contextlib.suppress(httpx2.TransportError):
            return self.http.get("/health").status_code == 200
        return False

    def _watch(self) -> None:
        with contextlib.suppress(psutil.Error):
            its = psutil.Process(self.process.pid)
            while self.process.poll() is None:
                self.peak = max(self.peak, its.memory_info().rss)
                time.sleep(0.05)

    def end(self, how: int = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        self.http.close()
        return self.process.wait(120)


@contextlib.contextmanager
def serving(home: Path, *options: str) -> Iterator[Serving]:
    its = Serving(home, *options)
    try:
        yield its
    finally:
        if its.process.poll() is None:
            its.end(signal.SIGKILL)


PLACES = """
import json
from v4cli import paths
from v4cli.prefixes.prefixes import Folder, stored
found = (place for prefixes in stored(paths.prefixes_dir()) for place in Folder(prefixes.folder).all_snapshots())
print(json.dumps({place.id: place.n_tokens for place in found}))
"""


def stored(home: Path) -> dict[str, int]:
    """Every place of a context that is stored, and how many tokens it is at."""
    command, environment = [sys.executable, "-c", PLACES], os.environ | {"V4_HOME": str(home)}
    return json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)


def killed_and_restarted(home: Path, options: Sequence[str], n: int, turns: int, clients: int) -> dict:
    """Conversations, a kill -9 while more are answered, another server in the same place: what it takes up."""
    with serving(home, *options) as first:
        conversations, _ = converse(first.http, n, turns, clients)
        before = stored(home)
        busy = threading.Thread(target=_until_killed, args=(first.http,), daemon=True)
        busy.start()
        time.sleep(0.5)
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
        busy.join()
    after = stored(home)
    with serving(home, *options) as second:
        taken_up = [one.turn(second.http).cached for one in conversations]
        status = second.end()
    n_tokens = sorted(before.values(), reverse=True)
    return {
        "stored": len(before), "lost": len(before.keys() - after.keys()), "exit_status": status,
        "taken_up": sum(cached > 0 for cached in taken_up), "tokens_stored": n_tokens[:n],
        "cached_tokens": sorted(taken_up, reverse=True),
    }  # fmt: skip


def _until_killed(http: httpx2.Client) -> None:
    with contextlib.suppress(httpx2.HTTPError, RuntimeError, AssertionError):
        hang_up(http, 200, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conversations", type=int, default=32)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--ram", default="700M")
    told = parser.parse_args()
    found: dict = {}
    options = ("--ram", told.ram, "--sessions", "8")
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), *options) as its:
        start = time.monotonic()
        _, answers = converse(its.http, told.conversations, told.turns, told.clients)
        found["conversations_s"] = time.monotonic() - start
        found["longest_silence_s"] = max(answer.silence_s for answer in answers)
        found["computed"] = sum(one.prompt - one.cached + one.completion - 1 for one in answers)
        start = time.monotonic()
        found["answered_of_hang_ups"] = hang_up(its.http, told.requests, told.clients)
        found["hang_ups_s"] = time.monotonic() - start
        health = its.http.get("/health").json()
        found |= {"busy_afterwards": health["busy"], "queued_afterwards": health["queued"]}
        found["peak_memory"] = its.peak
        found["exit_status"] = its.end()
    with tempfile.TemporaryDirectory() as folder:
        found["kill"] = killed_and_restarted(Path(folder), options, told.conversations, 2, told.clients)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
