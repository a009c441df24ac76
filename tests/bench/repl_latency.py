"""How long a key takes to appear in the REPL, idle and while the model writes, and how soon the prompt is there: CSV.

`python tests/bench/repl_latency.py [--keys N] [--starts N]`, in a pseudo terminal, on nano.
"""

import argparse
import os
import pty
import select
import statistics
import subprocess
import sys
import tempfile
import termios
import time

PROMPT = "›".encode()
FIRST_KEY = 0x4E00  # keys are characters that a model is unlikely to write: each one is looked for once
PAUSE = 0.03  # seconds between keys, as of a quick typist
QUESTIONS = 30  # that wait for their answers: random text ends at random


class Chat:
    """`v4 chat` in a pseudo terminal."""

    def __init__(self, home: str):
        self.started = time.perf_counter()
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 80))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "v4cli", "chat"], stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env=os.environ | {"TERM": "xterm-256color", "V4_HOME": home},
        )  # fmt: skip
        os.close(slave)

    def seconds_until(self, text: bytes) -> float:
        """Until the text has been written; RuntimeError if it is not within a minute."""
        start, seen = time.perf_counter(), b""
        while text not in seen:
            if time.perf_counter() - start > 60 or not select.select([self.master], [], [], 60)[0]:
                raise RuntimeError(f"{text!r} has not appeared")
            seen = seen[-len(text) :] + os.read(self.master, 1 << 16)
        return time.perf_counter() - start

    def drain(self, seconds: float) -> int:
        """Take what is written in this time; the number of bytes."""
        end, n_bytes = time.perf_counter() + seconds, 0
        while (left := end - time.perf_counter()) > 0:
            if select.select([self.master], [], [], left)[0]:
                n_bytes += len(os.read(self.master, 1 << 16))
        return n_bytes

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def line(self, text: str, shows: str) -> None:
        """Send a line; wait for what it shows."""
        self.type(text + "\r")
        self.seconds_until(shows.encode())
        self.drain(PAUSE)

    def latencies(self, n_keys: int) -> list[float]:
        """Seconds from each of the keys to its appearance."""
        seconds = []
        for number in range(n_keys):
            key = chr(FIRST_KEY + number)
            self.type(key)
            seconds.append(self.seconds_until(key.encode()))
            self.type("\x7f")
            self.drain(PAUSE)
        return seconds

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


def row(what: str, seconds: list[float]) -> str:
    """A line of CSV: milliseconds."""
    ms = sorted(1000 * s for s in seconds)
    return f"{what},{len(ms)},{statistics.median(ms):.1f},{ms[int(0.95 * (len(ms) - 1))]:.1f},{ms[-1]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=100)
    parser.add_argument("--starts", type=int, default=10)
    arguments = parser.parse_args()
    print("what,n,median_ms,p95_ms,max_ms", flush=True)
    with tempfile.TemporaryDirectory() as home:
        starts = []
        for _ in range(arguments.starts):
            chat = Chat(home)
            chat.seconds_until(PROMPT)
            starts.append(time.perf_counter() - chat.started)
            chat.close()
        print(row("first prompt", starts), flush=True)
        chat = Chat(home)
        chat.seconds_until("nano ·".encode())
        chat.drain(0.5)
        print(row("key while idle", chat.latencies(arguments.keys)), flush=True)
        chat.line("/temp 50", "50.0")
        chat.line("/set max_tokens 1000000", "1000000")
        for _ in range(QUESTIONS):
            chat.line("write a lot", "ing ")
        print(row("key while the model writes", chat.latencies(arguments.keys)), flush=True)
        if chat.drain(1.0) == 0:
            raise SystemExit("the model had stopped writing: the last row says nothing")
        chat.close()


if __name__ == "__main__":
    main()
