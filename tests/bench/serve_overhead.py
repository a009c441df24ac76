"""What HTTP costs beside the same work in one process, on nano or another model: CSV.

`python tests/bench/serve_overhead.py [--model NAME] [--requests N] [--sessions 8] [--tokens N] [--rounds N]`. Time to
the first event of an answer, and tokens per second of sessions that decode together, over HTTP and by the library, in
turns; `cpu` is what the process that computes took, which a busy machine changes less. Both sides sample the same
tokens after the same prompts, at a temperature and with seeds with which no answer ends by itself; the library is given
the prompts' tokens, over HTTP they are rendered and encoded. The server has room for the contexts of all rounds: that
others are stored is no matter of HTTP.
"""

import argparse
import csv
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil

from v4cli.chat.turn import Chat
from v4cli.engine.sampler import Sampling
from v4cli.options import Options
from v4cli.serve import chat_api
from v4cli.serve.memory import Memory
from v4cli.serve.prompts import Prompts
from v4cli.store import library

HOT = 50.0  # the temperature
CHOSEN = {"thinking": {"type": "disabled"}, "stream": True, "stream_options": {"include_usage": True}}


class Http:
    """One connection to a server."""

    def __init__(self, port: int):
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, body: dict) -> tuple[float, float, int]:
        """Seconds until the first bytes and until the first piece of the answer; its tokens."""
        data = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        start, said, first, piece = time.perf_counter(), b"", 0.0, 0.0
        self.sock.sendall(head.encode() + data)
        while b"[DONE]" not in said[-64:]:
            said += self._more()
            first = first or time.perf_counter() - start
            if not piece and b'"content": "' in said.replace(b'"content": ""', b""):
                piece = time.perf_counter() - start
        if not said.endswith(b"0\r\n\r\n"):
            said += self._more()
        return first, piece, int(re.findall(rb'"completion_tokens": (\d+)', said)[-1])

    def _more(self) -> bytes:
        data = self.sock.recv(1 << 16)
        if not data:
            raise ConnectionError("the server has hung up")
        return data


@contextmanager
def server(model: str, sessions: int) -> Iterator[tuple[int, psutil.Process]]:
    """The port and the process of a server of its own."""
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "v4cli", "serve", model, "--port", "0", "--sessions", str(sessions)]
        environment = os.environ | {"V4_HOME": home}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        try:
            line = process.stderr.readline()
            yield int(re.search(r":(\d+)/v1", line)[1]), psutil.Process(process.pid)
        finally:
            process.terminate()
            process.communicate()


def question(i: int, tokens: int) -> dict:
    return {"messages": [{"role": "user", "content": f"Number {i}: how are you?"}], "max_tokens": tokens, **CHOSEN}


def library_first(chat: Chat, i: int) -> float:
    """Seconds until the first event of an answer."""
    twin, start = chat.twin(), time.perf_counter()
    events = twin.reply(question(i, 8)["messages"], Options(thinking=False, max_tokens=8))
    next(events)
    taken = time.perf_counter() - start
    for _ in events:
        pass
    return taken


def prompt(chat: Chat, body: dict) -> list[int]:
    """What a server makes of a question."""
    engine = chat.engine
    prompts = Prompts(engine.config, chat.tokenizer, chat.defaults, Memory())
    return prompts.encode(chat_api.read(body)).ids


def seeds_without_end(chat: Chat, prompts: Sequence[list[int]], tokens: int, start: int) -> list[int]:
    """One of each prompt, with which its answer does not end by itself."""
    seeds = [start] * len(prompts)
    while min(lengths := library_answers(chat, prompts, seeds, tokens)) < tokens:
        seeds = [seed + (length < tokens) for seed, length in zip(seeds, lengths)]
    return seeds


def library_answers(chat: Chat, prompts: Sequence[list[int]], seeds: Sequence[int], tokens: int) -> list[int]:
    """How many tokens each of these sessions gets, at the same time."""

    def work(ids: list[int], seed: int) -> int:
        its = chat.engine.session()
        its.sync(ids)
        return sum(1 for _ in its.generate(Sampling(temperature=HOT, seed=seed), tokens, (chat.tokenizer.eos_id,)))

    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(work, prompts, seeds))


def http_together(connections: Sequence[Http], questions: Sequence[dict], seeds: Sequence[int]) -> int:
    bodies = [body | {"temperature": HOT, "seed": seed} for body, seed in zip(questions, seeds)]
    with ThreadPoolExecutor(len(connections)) as pool:
        return sum(n for _, _, n in pool.map(Http.ask, connections, bodies))


def timed(work: Callable[[], int], process: psutil.Process) -> tuple[float, float]:
    """Tokens per second, and microseconds of a processor's time per token in `process`."""
    cpu, start = sum(process.cpu_times()[:2]), time.perf_counter()
    n = work()
    return n / (time.perf_counter() - start), 1e6 * (sum(process.cpu_times()[:2]) - cpu) / n


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, value in (("requests", 100), ("sessions", 8), ("tokens", 256), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--model", default="nano")
    told = parser.parse_args()
    chat = Chat.open(library.model_folder(told.model))
    rows: dict[tuple[str, str, str], list[float]] = {}

    def note(what: str, how: str, unit: str, value: float) -> None:
        rows.setdefault((what, how, unit), []).append(value)

    with server(told.model, told.sessions * (told.rounds + 1)) as (port, process):
        connections = [Http(port) for _ in range(told.sessions)]
        for i in range(-5, told.requests):
            taken = library_first(chat, i)
            first, piece, _ = connections[0].ask(question(i, 8))
            if i >= 0:
                note("first event", "library", "ms", 1e3 * taken)
                note("first bytes", "http", "ms", 1e3 * first)
                note("first event", "http", "ms", 1e3 * piece)
        for start in range(0, 1000 * told.rounds, 1000):
            questions = [question(start + i, told.tokens) for i in range(told.sessions)]
            prompts = [prompt(chat, body) for body in questions]
            seeds, rates = seeds_without_end(chat, prompts, told.tokens, start), {}
            works = {
                "library": (lambda: sum(library_answers(chat, prompts, seeds, told.tokens)), psutil.Process()),  # noqa: B023
                "http": (lambda: http_together(connections, questions, seeds), process),  # noqa: B023
            }
            for how in reversed(works) if start % 2000 else works:
                rates[how], cpu = timed(*works[how])
                note("together", how, "tokens/s", rates[how])
                note("together", how, "cpu us/token", cpu)
            note("together", "http", "of library", rates["http"] / rates["library"])
    out = csv.writer(sys.stdout)
    out.writerow(("what", "by", "unit", "median", "best", "p95"))
    for key, values in rows.items():
        best = max(values) if key[2] in ("tokens/s", "of library") else min(values)
        p95 = sorted(values)[int(0.95 * (len(values) - 1))]
        out.writerow((*key, f"{statistics.median(values):.3f}", f"{best:.3f}", f"{p95:.3f}"))


if __name__ == "__main__":
    threading.stack_size(1 << 20)
    main()
