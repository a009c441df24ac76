"""Speed of a model on a GPU: where its experts were found, how long was waited for them, and how much of what v4 doctor
measured of the card was reached."""

import time
from dataclasses import asdict, dataclass
from statistics import median

import numpy as np

from v4cli.engine.engine import Engine
from v4cli.engine.session import Session
from v4cli.experts.slots import Counts

WARM = 2  # steps that are not counted: one is recorded


@dataclass(frozen=True)
class Served:
    """Steps of one kind. Shares of the experts that were asked for, by where they lay; of the time, that was waited for
    them; bytes/s from VRAM (None: not told by these steps), over PCIe and from the SSD; shares of what v4 doctor
    measured, None where it did not."""

    tokens: int
    tokens_per_s: float
    in_vram: float
    in_ram: float
    from_ssd: float
    wait_share: float
    vram: float | None
    of_vram: float | None
    link: float
    of_link: float | None
    ssd: float


@dataclass(frozen=True)
class CardReport:
    """One measurement. `memory`: bytes of the card planned and held, by item."""

    model: str
    card: str
    slots: int  # experts in VRAM
    experts: int
    prefill: Served
    decode: Served
    memory: dict[str, tuple[int, int]]

    def to_dict(self) -> dict:
        return asdict(self)


def measure(engine: Engine, card: str, prompt: int, tokens: int) -> CardReport:
    """Prefill `prompt` random tokens, decode `tokens` more, of a model on a GPU of that name."""
    assert engine.placed is not None
    engine.warm()
    ids = np.random.default_rng(0).integers(0, engine.config.vocab_size, prompt + WARM + tokens).tolist()
    session, slots = engine.session(), engine.placed.slots
    before, passed = _counts(engine), slots.bytes_passed if slots else 0
    start = time.perf_counter()
    session.sync(ids[:prompt])
    took = time.perf_counter() - start
    passed = (slots.bytes_passed if slots else 0) - passed
    prefill = _served(session, _counts(engine).since(before), prompt, took, took / prompt, passed, decoded=False)
    for token in ids[prompt : prompt + WARM]:
        session.feed([token])
    before, seconds = _counts(engine), []
    for token in ids[prompt + WARM :]:
        start = time.perf_counter()
        session.feed([token])
        seconds.append(time.perf_counter() - start)
    spent = _counts(engine).since(before)
    decode = _served(session, spent, tokens, sum(seconds), median(seconds), 0, decoded=True)
    config = engine.config
    n_experts = config.num_hidden_layers * config.n_routed_experts
    n_slots = slots.n_slots if slots else n_experts
    return CardReport(str(engine.path), card, n_slots, n_experts, prefill, decode, engine.vram() or {})


def _counts(engine: Engine) -> Counts:
    return engine.counts() or Counts()


def _served(
    session: Session, spent: Counts, tokens: int, seconds: float, typical: float, passed: int, decoded: bool
) -> Served:
    """Of steps that took so many seconds in all; bytes that passed to the card."""
    engine, used = session.engine, spent.hits + spent.misses
    reached = (engine.reached(spent, tokens, seconds, len(session.tokens)) or {}) if decoded else {}
    link = passed / seconds
    return Served(
        tokens=tokens,
        tokens_per_s=1 / typical,
        in_vram=spent.on_card / used if used else 1.0,
        in_ram=(spent.hits - spent.on_card) / used if used else 0.0,
        from_ssd=spent.misses / used if used else 0.0,
        wait_share=spent.wait_s / seconds,
        vram=reached.get("vram"),
        of_vram=reached.get("of_vram"),
        link=link,
        of_link=link / engine.limits["link"] if "link" in engine.limits and passed else None,
        ssd=spent.bytes_read / seconds,
    )
