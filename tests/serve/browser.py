"""A headless Chromium over its DevTools pipe: no other program, no port."""

import fcntl
import itertools
import json
import os
import shutil
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue

PATIENCE_S = 240.0
NAMES = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
FLAGS = (
    "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-extensions",
)  # fmt: skip


def program() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a browser that knows nobody. `requests` and `troubles` are what the page has asked for, and what went
    wrong in it. OSError or TimeoutError where the browser does not start."""

    def __init__(self, path: str, profile: Path):
        self.requests: list[str] = []
        self.troubles: list[str] = []
        (theirs, self._to), (self._from, answers) = os.pipe(), os.pipe()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (theirs, answers)]

        def place() -> None:
            for fd, at in zip(high, (3, 4)):  # where it looks for its pipes
                os.dup2(fd, at)

        self._process = subprocess.Popen(
            [path, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=place, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for fd in (theirs, answers, *high):
            os.close(fd)
        self._ids, self._answers, self._session = itertools.count(1), {}, None
        threading.Thread(target=self._listen, daemon=True).start()
        (target,) = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"][:1]
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _listen(self) -> None:
        data = b""
        while piece := os.read(self._from, 1 << 16):
            *whole, data = (data + piece).split(b"\0")
            for message in map(json.loads, whole):
                if "id" in message:
                    self._answers[message["id"]].put(message)
                else:
                    self._note(message["method"], message["params"])

    def _note(self, method: str, about: dict) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.troubles.append(json.dumps(about["exceptionDetails"]))
        elif method == "Log.entryAdded" and about["entry"]["source"] != "network":
            self.troubles.append(about["entry"]["text"])

    def call(self, method: str, **parameters) -> dict:
        number = next(self._ids)
        answer = self._answers[number] = Queue()
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": number, "method": method, "params": parameters} | session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        try:
            said = answer.get(timeout=PATIENCE_S)
        except Empty:
            raise TimeoutError(f"{method}: the browser does not answer") from None
        assert "error" not in said, said
        return said["result"]

    def open(self, url: str) -> None:
        """Leave the page that is there and forget all about it; then open this one."""
        self.call("Page.navigate", url="about:blank")
        self.requests.clear()
        self.troubles.clear()
        self.call("Page.navigate", url=url)
        self.until(f"document.readyState === 'complete' && location.href === {url!r}")

    def value(self, expression: str):
        """Of JavaScript; of a promise, what it becomes."""
        said = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until a condition holds."""
        waiting = "new Promise((done) => {{ const look = () => ({}) ? done(true) : setTimeout(look, 10); look(); }})"
        self.value(waiting.format(condition))

    def close(self) -> None:
        with suppress(OSError, TimeoutError, AssertionError):
            self._session = None
            self.call("Browser.close")
        self._process.kill()
        self._process.wait()
        os.close(self._to)
