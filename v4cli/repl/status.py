"""The line above the input: what is going on, how fast, and how much of the context and the memory is in use."""

import time

from v4cli.repl import items
from v4cli.words import span

DOING = {
    "Asked": "reading", "Round": "reading", "Thinking": "thinking", "Text": "answering", "ToolCallStart": "calling",
    "CallStart": "running", "Ask": "waiting for you", "CallEnd": "reading", "Ready": "", "Finished": "",
}  # fmt: skip


class Status:
    """`take` every item, then `parts`. Knows the dialogue once there is one."""

    def __init__(self, model: str):
        self.model = model
        self.dialogue = None
        self.doing, self.since = "loading", time.monotonic()
        self.asked = self.since  # when the question came
        self.prefill: tuple[float, int, int, int] | None = None  # when it began; tokens then, now, in all
        self._memory = (0.0, 0)
        self._experts = False  # shown
        self._counts: tuple | None = None  # of experts: when the question came, and now
        self._took = 0.0  # seconds since then

    def take(self, item) -> None:
        """Follow what happens."""
        if isinstance(item, items.Ready):
            self.model = item.model
        elif isinstance(item, items.Prefill):
            began, first = self.prefill[:2] if self.prefill else (time.monotonic(), item.done)
            self.prefill = (began, first, item.done, item.total)
        elif isinstance(item, items.Experts):
            self._experts = item.shown
        elif isinstance(item, items.Asked):
            self.asked, self._counts = time.monotonic(), None
        doing = DOING.get(type(item).__name__, self.doing)
        if isinstance(item, items.Asked):
            doing = self.doing or _asked(item.text)  # a command that does not wait changes nothing
        if doing != self.doing:
            self.doing, self.since, self.prefill = doing, time.monotonic(), None

    def parts(self) -> list[str]:
        """Texts to show, the most important first."""
        if self.dialogue is None or self.dialogue.chat is None:
            return [f"{self.model} is loading"]
        session, engine = self.dialogue.chat.session, self.dialogue.chat.engine
        stats, used = session.stats, len(session.tokens) if self.dialogue.playing else self.dialogue.used
        parts = self._doing() if self.doing else []
        parts.append(self.model)
        if used is not None:
            parts.append(f"{used:,} of {short(engine.config.max_position_embeddings)} tokens")
        if self.dialogue.conversation.agent.toolbox.tools:
            parts.append(f"approve: {self.dialogue.approvals.mode}")
        if not (self.dialogue.playing or self.dialogue.answered):
            stats = type(stats)()  # of another conversation
        if stats.completion_tokens:
            rate = stats.decode_tokens_per_s
            parts.append(f"{rate:,.0f} tok/s" if rate >= 100 else f"{rate:.3g} tok/s")
        if stats.prompt_tokens:
            parts.append(f"{stats.cached_tokens / stats.prompt_tokens:.0%} reused")
        parts.append(f"{self._resident() / (1 << 30):.1f} GiB")
        return parts

    def experts(self) -> list[str]:
        """The same of experts that are not all in one place, for this question; nothing unless it is wanted."""
        chat = self.dialogue and self.dialogue.chat
        now = chat.engine.counts() if chat and self._experts else None
        if now is None:
            return []
        if self._counts is None:
            self._counts = (now, now)
        if self.doing:
            self._counts, self._took = (self._counts[0], now), time.monotonic() - self.asked
        counts, seconds = self._counts[1].since(self._counts[0]), max(self._took, 1e-9)
        stream, slots = chat.engine.stream, chat.engine.placed and chat.engine.placed.slots
        if slots:
            rates = counts.to_dict()
            return [
                f"experts: {slots.policy.n_resident:,} of {slots.table.size:,} in VRAM",
                f"{rates['card_hit_rate']:.0%} hits there",
                f"{rates['hit_rate'] - rates['card_hit_rate']:.0%} in RAM",
                *([f"{counts.bytes_read / seconds / 1e9:.2f} GB/s from the SSD"] if stream else []),
                f"waited for {counts.wait_s / seconds:.0%}",
                *self._reached(chat),
            ]
        return [
            f"experts: {stream.policy.n_resident:,} of {len(stream.reader.files):,} in memory",
            f"{counts.to_dict()['hit_rate']:.0%} hits",
            f"{counts.bytes_read / seconds / 1e9:.2f} GB/s from the SSD",
            f"busy {counts.busy_s / seconds:.0%}",
            f"waited for {counts.wait_s / seconds:.0%}",
        ]

    @staticmethod
    def _reached(chat) -> list[str]:
        """How much of a GPU's bandwidth the last answer read with, where v4 doctor measured it."""
        reached = chat.session.stats.reached or {}
        return [f"VRAM at {reached['of_vram']:.0%} of its bandwidth"] if "of_vram" in reached else []

    def _doing(self) -> list[str]:
        """What is being done, and how long that takes."""
        if self.doing == "reading" and self.prefill:
            return self._reading()
        written = f", {len(self.dialogue.chat.ids):,} tokens" if self.doing in ("thinking", "answering") else ""
        return [f"{self.doing} {span(time.monotonic() - self.since)}{written}"]

    def _reading(self) -> list[str]:
        """How far the prompt is read; the time left goes by the model's work, which grows with the context."""
        from v4cli.plan.flops import prefill_s_left  # slow to import; a model that reads has done so

        began, first, done, total = self.prefill
        seconds = max(1e-9, time.monotonic() - began)
        left = prefill_s_left(self.dialogue.chat.engine.config, first, done, total, seconds) if done < total else None
        parts = [f"reading {done / total:.0%}"]
        if left is not None:
            parts += [f"{span(left)} left", f"{(done - first) / seconds:,.0f} tok/s"]
        return [*parts, f"{done:,} of {total:,}"]

    def _resident(self) -> int:
        """Bytes of memory in use, looked up once a second."""
        import psutil

        when, n_bytes = self._memory
        if time.monotonic() - when > 1:
            n_bytes = psutil.Process().memory_info().rss
            self._memory = (time.monotonic(), n_bytes)
        return n_bytes


def _asked(line: str) -> str:
    """What a line of the user's lets begin."""
    return "running" if line.startswith("!") else "loading" if line.startswith("/model ") else "reading"


def short(n: int) -> str:
    """A number of tokens: 4k, 1M."""
    for unit, size in (("M", 1 << 20), ("k", 1 << 10)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return str(n)


def joined(parts: list[str], width: int) -> str:
    """As many of the parts as fit, the first always."""
    line = parts[0][: max(width, 0)]
    for part in parts[1:]:
        if len(line) + 3 + len(part) > width:
            break
        line += " · " + part
    return line
