"""The model of a machine with a card: the figures it was made from, and what others measured on theirs."""

from dataclasses import replace
from math import log
from pathlib import Path
from typing import NamedTuple

import machine_table
import pytest

from v4cli.bench.synthetic import shape
from v4cli.model.schema import expected_tensors
from v4cli.plan import cost, memory, speed
from v4cli.plan.cards import CARDS, Card, like, named
from v4cli.plan.hits import EXPONENT, RANGE, served
from v4cli.plan.placement import Budget, card_shortage, make_plan, shortage
from v4cli.store.parts import layout

FLASH = shape("flash")
CONTEXTS = 4096, 131_072, 1 << 20
AMPLE = 256 << 30  # RAM that holds all experts
USABLE = 0.98  # of VRAM
SAMPLING_S = 1.5e-3  # what the tables count for a token's choice and its copies
NEAR = 0.2
STORES = {
    "native": cost.needs(FLASH, cost.stored_tensors(layout(FLASH, "native", False))),
    "q4": cost.needs(FLASH, cost.stored_tensors(layout(FLASH, "q4", False))),
    "official": cost.needs(FLASH, expected_tensors(FLASH, False)),
}


class Predicted(NamedTuple):
    slots: int
    hits: float
    decode: float  # tokens/s


def predicted(name, store, n_tokens, cpu=68e9, exponent=EXPONENT, sampling_s=SAMPLING_S, kv_host=False):
    """None where the card cannot hold what it must."""
    card, needs = named(name), cost.at_context(STORES[store], FLASH, n_tokens)
    budget = Budget(AMPLE, int(USABLE * card.vram), 1, 1, 1, kv_host)
    if card_shortage(needs, budget) > 0:
        return None
    plan = make_plan(needs, budget, exponent)
    rates = speed.Rates(card, cpu, 1.0, sampling_s)
    return Predicted(plan.slots, plan.hits, 1 / speed.decode_s(plan, FLASH, n_tokens, rates))


# The figures that the backend was designed with: card, store, GB/s of experts on its CPU; at 4k, 128k and 1M slots and
# tokens/s, None where it does not fit; percent of hits, and tokens/s of exponents 0.65 and 0.31, at 4k.
TABLE = [
    ("RTX 4060", "q4", 50, (183, 150, None), (12, 12, None), 16, None),
    ("RTX 4070", "native", 60, (259, 226, None), (15, 15, None), 19, None),
    ("RTX 4070", "q4", 60, (498, 465, 224), (18, 17, 15), 25, None),
    ("RTX 4080 SUPER", "native", 68, (574, 541, 300), (19, 19, 17), 26, None),
    ("RTX 4080 SUPER", "q4", 68, (813, 780, 538), (22, 22, 20), 31, None),
    ("RTX 3090", "native", 68, (1204, 1170, 929), (22, 22, 20), 37, None),
    ("RTX 3090", "q4", 68, (1443, 1409, 1168), (26, 25, 23), 40, None),
    ("RTX 4090", "native", 68, (1204, 1170, 929), (23, 23, 21), 37, (20, 27)),
    ("RTX 4090", "q4", 68, (1443, 1409, 1168), (26, 26, 24), 40, (22, 32)),
    ("L40S", "native", 68, (2905, None, None), (28, 28, 26), 55, None),
    ("L40S", "q4", 68, (3144, None, None), (33, 32, 30), 57, None),
    ("H100", "native", 100, (5299, None, None), (65, 64, 57), 72, None),
    ("H100", "q4", 100, (5538, None, None), (73, 72, 63), 73, None),
    ("H200", "native", 100, (9862, None, None), (151, 146, 115), 95, None),
    ("H200", "q4", 100, (10100, None, None), (188, 180, 136), 96, None),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}, {row[1]}")
def test_slots_hits_and_decoding_are_those_of_the_design(row):
    name, store, cpu, slots, rates, percent, bounds = row
    for n_tokens, n_slots, rate in zip(CONTEXTS, slots, rates):
        found = predicted(name, store, n_tokens, cpu * 1e9)
        if rate is None:
            assert found is None
            continue
        assert found.decode == pytest.approx(rate, rel=NEAR), n_tokens
        if n_slots is not None:
            assert found.slots == pytest.approx(n_slots, rel=0.06), n_tokens
    assert 100 * predicted(name, store, CONTEXTS[0], cpu * 1e9).hits == pytest.approx(percent, rel=0.05)
    for exponent, rate in zip(RANGE, bounds or ()):
        found = predicted(name, store, CONTEXTS[0], cpu * 1e9, exponent)
        assert found.decode == pytest.approx(rate, rel=NEAR)


@pytest.mark.parametrize(("store", "rate"), [("native", 183), ("q4", 240)])
def test_sampling_bounds_the_fastest_card(store, rate):
    """At 128k on an H200, sampling 0.1 ms."""
    assert predicted("H200", store, CONTEXTS[1], 100e9, sampling_s=1e-4).decode == pytest.approx(rate, rel=NEAR)


def test_the_smallest_card_reaches_a_million_with_entries_on_the_host():
    """12 to 14 tokens/s on 8 GB; 240 slots more on 24 GB."""
    assert predicted("RTX 4060", "q4", CONTEXTS[2]) is None
    assert 12 * (1 - NEAR) < predicted("RTX 4060", "q4", CONTEXTS[2], 50e9, kv_host=True).decode < 14
    there, host = (predicted("RTX 4090", "native", CONTEXTS[2], kv_host=kept) for kept in (False, True))
    assert host.slots - there.slots == pytest.approx(240, rel=0.02)
    assert host.decode > there.decode


# Tokens/s of the prefill of a chunk of so many tokens, native store.
PREFILLS = [
    ("RTX 4090", {512: 86, 2048: 343, 4096: 685, 8192: 1370, 16384: 2740}),
    ("RTX 3090", {512: 86, 2048: 343, 4096: 685, 8192: 1370, 16384: 1670}),
    ("H100", {2048: 1334, 8192: 4300}),
    ("H200", {2048: 4300, 4096: 4300, 8192: 4300}),
]


@pytest.mark.parametrize(("name", "rates"), PREFILLS)
def test_prefill_is_that_of_the_design(name, rates):
    for n_tokens, rate in rates.items():
        assert prefill(name, n_tokens, n_tokens) == pytest.approx(rate, rel=NEAR), n_tokens


def prefill(name: str, n_tokens: int, chunk: int) -> float:
    """Tokens/s."""
    card, needs = named(name), cost.at_context(STORES["native"], FLASH, n_tokens)
    plan = make_plan(needs, Budget(AMPLE, int(USABLE * card.vram), 1, 1, 1))
    return n_tokens / speed.prefill_s(plan, needs, FLASH, n_tokens, speed.Rates(card, 68e9, 1.0), chunk)


def test_few_rows_are_left_to_the_cpu_and_chunks_add_up():
    card = named("RTX 4090")
    streams = 9_807 * 13_369_344 / card.link  # of all experts that are not there
    assert 64 / prefill("RTX 4090", 64, 8192) < 0.5 * streams
    assert 512 / prefill("RTX 4090", 512, 8192) == pytest.approx(streams, rel=0.01)
    assert 16_384 / prefill("RTX 4090", 16_384, 8192) == pytest.approx(2 * streams, rel=0.01)
    assert 10_000 / prefill("RTX 4090", 10_000, 8192) == pytest.approx(2 * streams, rel=0.01)


# -- what others measured ------------------------------------------------------------------------------------------


class Published(NamedTuple):
    """Where it was published; the machine; share of the experts in VRAM and of requests that it serves (None: as the
    exponent says); what is not there comes from the CPU, or from an SSD of so many bytes/s; tokens/s."""

    source: str
    card: Card
    cpu: float
    share: float
    hits: float | None
    low: float
    high: float
    ssd: float | None = None
    expert: int = 13_369_344  # bytes
    n_tokens: int = 4096


def machine(name: str, **rates: float) -> Card:
    return replace(named(name), **rates)


GIB, SLOTS = 1 << 30, 11_008
Q2 = 7_080_000  # bytes of an expert of about two bits a weight
OTHERS = [
    Published(
        "club-3090 discussion 861: two RTX 3090, MXFP4, 12 % of the experts, hits 0.52, host at 40 GB/s",
        machine("RTX 3090"), 40e9, 0.12, 0.52, 18.4, 18.4,
    ),
    Published(
        "FreeToken issues 444 and 174: RTX 5090, 64-core EPYC whose FP4 kernel reads 110.3 GB/s, LRU hits 8 %",
        machine("RTX 5090", link=26.1e9), 110.3e9, 0.064, 0.08, 24.5, 26.9,
    ),
    Published(
        "the same, hits 18 %",
        machine("RTX 5090", link=26.1e9), 110.3e9, 0.064, 0.18, 24.5, 26.9,
    ),
    Published(
        "SGLang pull request 35314: RTX 5090, cache of 21 GiB, misses from the SSD (1.66 GB a token at 1.99 tokens/s)",
        machine("RTX 5090"), 68e9, 21 * GIB / 13_369_344 / SLOTS, 0.542, 1.99, 1.99, ssd=1.66e9 * 1.99,
    ),
    Published(
        "the same on other prompts (2.04 GB a token at 1.85 tokens/s)",
        machine("RTX 5090"), 68e9, 21 * GIB / 13_369_344 / SLOTS, 0.464, 1.85, 1.85, ssd=2.04e9 * 1.85,
    ),
    Published(
        "colibri: RTX 5080 16 GB, 32 GB of RAM, hits 6 %, two disks of 6 GB/s in all, of which 4.5 are reached",
        machine("RTX 4080 SUPER", read=0.85 * 960e9), 50e9, 0.05, 0.06, 1.5, 1.6, ssd=4.5e9, expert=12_600_000,
    ),
    Published(
        "PolyStrata: RTX 5090, 120 GB of RAM, two-bit experts, about 25 % of them in VRAM, hits not published",
        machine("RTX 5090"), 68e9, 0.25, None, 56, 56, expert=Q2,
    ),
]  # fmt: skip


@pytest.mark.parametrize("told", OTHERS, ids=lambda told: told.source.split(":")[0])
def test_published_speeds_of_others_are_met(told):
    needs = replace(STORES["official"], expert=told.expert, slot=told.expert, kinds=(told.expert,))
    needs = cost.at_context(needs, FLASH, told.n_tokens)
    vram = int(card_shortage(needs, Budget(0, 0, 1, 1, 1)) + told.share * needs.n_experts * needs.slot) + 1
    ram = AMPLE if told.ssd is None else shortage(needs, Budget(0, vram, 1, 1, 1))
    exponent = EXPONENT if told.hits is None else log(told.hits) / log(told.share)
    plan = make_plan(needs, Budget(ram, vram, 1, 1, 1), exponent)
    if told.hits is not None:
        assert plan.hits == pytest.approx(told.hits, rel=0.01)
    assert plan.resident == pytest.approx(1 if told.ssd is None else told.share, rel=0.01)
    rates = speed.Rates(told.card, told.cpu, told.ssd or 1.0)
    rate = 1 / speed.decode_s(plan, FLASH, told.n_tokens, rates)
    assert (1 - NEAR) * told.low <= rate <= (1 + NEAR) * told.high


@pytest.mark.parametrize(
    ("source", "share", "percent"),
    [
        ("FreeToken issue 174, best fixed set", 0.064, 46),
        ("club-3090 discussion 861", 0.12, 52),
        ("SGLang pull request 35314", 0.15, 46.4),
        ("0xSero/dsv41-flash-offload", 0.046, 40.8),
        ("JigSawPT/deepseek-v41-flash-on-5090", 0.065, 62.7),
        ("GiorgioOppo/ds4", 0.0625, 64),
    ],
)
def test_published_hit_rates_of_good_caches_are_not_less_than_is_predicted(source, share, percent):
    """A plain LRU cache, as FreeToken's, hits less: 8 to 18 % at a share of 6.4 %."""
    assert served(share, EXPONENT) < percent / 100
    assert 0.16 < served(0.064, RANGE[0]) < 0.18


# -- cards -----------------------------------------------------------------------------------------------------------


def test_cards_are_found_by_what_people_and_drivers_call_them():
    for text, name in {
        "4090": "RTX 4090", "NVIDIA GeForce RTX 4090": "RTX 4090", "rtx-3090": "RTX 3090", "h100": "H100 80GB",
        "NVIDIA H200": "H200", "4080": "RTX 4080 SUPER", "NVIDIA L40S": "L40S", "H100 80GB HBM3": "H100 80GB",
    }.items():  # fmt: skip
        assert named(text).name == name, text
    assert named("") is None and named("Voodoo 2") is None and named("RTX") is None


def test_a_card_of_which_only_the_memory_is_known_is_taken_for_the_usual_one():
    assert like(24 << 30).name == "RTX 4090" and like(8 << 30).name == "RTX 4060"
    assert like(1 << 40).name == "H200" and like(0).name == "RTX 4060"


def test_published_figures_keep_their_proportions():
    for card in CARDS:
        assert 1e9 < card.link < card.read < 5e12 and card.read < card.fp32 < 10 * card.int8, card.name
        assert 8e9 < card.vram < 160e9 and not card.measured


def test_chunks_grow_with_the_card_and_what_they_work_in_does_not_outgrow_it():
    chunks = [memory.card_chunk(FLASH, card.vram) for card in CARDS]
    assert min(chunks) >= memory.CHUNK and max(chunks) == memory.MOST_CHUNK
    for card, chunk in zip(CARDS, chunks):
        assert chunk == memory.CHUNK or memory.card_work_bytes(FLASH, chunk, memory.CONTEXT) <= 0.16 * card.vram, (
            card.name
        )
    assert memory.card_chunk(FLASH, 24 << 30) == 8192 and memory.card_chunk(FLASH, 8 << 30) < 8192


def test_the_page_of_machines_says_what_plans_say():
    page = Path(__file__).parents[2] / "docs" / "machines.md"
    assert machine_table.with_table(page.read_text()) == page.read_text(), "tests/plan/machine_table.py writes it"
