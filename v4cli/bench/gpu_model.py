"""A whole model on a card: decoding at contexts of any length with a share of its experts on the card, and prefill.

Shares of hits are forced: between measurements the table of slots is written so that each layer has that share of its
experts in slots, and nothing moves meanwhile. What lies in a slot does not matter to random weights, so there may be
fewer slots than hits ask for; two experts of a token are never in one while a layer's experts are not more than slots.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import numpy as np

from v4cli.bench.fill import fill
from v4cli.bench.gpu_part import Part
from v4cli.engine.engine import Engine

WARM = 3  # steps that are not counted: they compile, and they are recorded


class Forced(Protocol):
    """Experts on the card, as they are told to be."""

    def force(self, share: float) -> None:
        """Of each layer's experts so many are on the card from the next step on."""

    def hits(self) -> float:
        """Share of what steps have asked for since then that was on the card."""


@dataclass(frozen=True)
class Wanted:
    """What is measured; contexts in tokens, hits in per cent."""

    contexts: tuple[int, ...] = (4_000, 128_000, 1_000_000)
    hits: tuple[int, ...] = (100, 95, 80, 60, 40)
    prompts: tuple[int, ...] = (512, 2_048, 8_192)
    tokens: int = 16  # decoded for a figure


def measure(
    engine: Engine, forced: Forced, part: Part, wanted: Wanted, clock: Callable[[], float] = time.perf_counter
) -> None:
    """Rows `decode` and `prefill` of `part`, the shortest contexts and the most hits first."""
    session = engine.session()
    for context in wanted.contexts:
        if part.begins(f"context of {context}"):
            with part.guarded(f"context of {context}"):
                fill(session, context - wanted.tokens)
                for hits in wanted.hits:
                    if part.begins(f"decode at {context}, {hits} % hits"):
                        part.row("decode", decoded(session, forced, hits, context, wanted.tokens, clock))
    for tokens in wanted.prompts:
        if part.begins(f"prefill of {tokens}"):
            with part.guarded(f"prefill of {tokens}"):
                part.row("prefill", prefilled(engine, forced, tokens, clock))


def decoded(
    session: Any, forced: Forced, hits: int, context: int, tokens: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """One row: the median step, and what share of the experts was on the card."""
    ids = np.random.default_rng(context + hits).integers(0, session.engine.config.vocab_size, WARM + tokens).tolist()
    for token in ids[:WARM]:
        session.feed([token])
    forced.force(hits / 100)
    session.feed([ids[0]])  # the first that sees it
    seconds = []
    for token in ids[WARM:]:
        start = clock()
        session.feed([token])
        seconds.append(clock() - start)
    typical = median(seconds)
    row = {"ctx": context, "hits_wanted": hits, "hits": forced.hits(), "steps": tokens}
    return row | {"ms": 1e3 * typical, "slowest_ms": 1e3 * max(seconds), "tokens_per_s": 1 / typical}


def prefilled(engine: Engine, forced: Forced, tokens: int, clock: Callable[[], float]) -> dict[str, Any]:
    """One row: a prompt in a fresh session, all experts on the card, the second time it is computed."""
    ids: Sequence[int] = np.random.default_rng(tokens).integers(0, engine.config.vocab_size, tokens).tolist()
    forced.force(1.0)
    seconds = 0.0
    for _ in range(2):
        session = engine.session()
        start = clock()
        session.sync(ids)
        seconds = clock() - start
    return {"tokens": tokens, "s": seconds, "tokens_per_s": tokens / seconds}


def forced_table(shape: tuple[int, int], share: float, n_slots: int, rng: np.random.Generator) -> np.ndarray:
    """Slots of experts int16 (layers, E): of each layer a random `share` have one, experts of a layer different ones
    while there are enough. -1: none."""
    layers, experts = shape
    table, count = np.full(shape, -1, np.int16), round(share * experts)
    for layer in range(layers):
        chosen = rng.permutation(experts)[:count]
        table[layer, chosen] = (layer * experts + np.arange(count)) % n_slots
    return table
