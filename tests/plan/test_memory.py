"""Formulas of the ledger against what is really allocated."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
from v4kernels import native
from v4kernels.cpu import Cpu, default_threads

from v4cli.bench.speed import random_engine
from v4cli.bench.synthetic import shape
from v4cli.engine.engine import Engine
from v4cli.model.state import State
from v4cli.model.weights import NoWeights, build
from v4cli.nano import recipe
from v4cli.plan import cost, memory
from v4cli.plan.budget import ledger_of, residence
from v4cli.plan.placement import LEAST_POINTS, Budget, make_plan, shortage
from v4cli.store.parts import layout
from v4cli.store.store import Store

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
CONFIGS = {
    "flash": shape("flash"),
    "pro": shape("pro"),
    "nano": recipe.config(),
    "tiny": tiny.config(tiny.STORE_LIKE),
    "window": replace(shape("flash", 2), sliding_window=200),
}


def empty(config) -> State:
    """A state of the cpu backend over no weights: memory that is only reserved."""
    attentions = [layer.attn for layer in build(config, NoWeights(), experts=False).layers]
    return State(lambda: Cpu().new_state(attentions, config.max_position_embeddings))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_session_holds_to_the_byte_what_is_planned(name):
    config = CONFIGS[name]
    state = empty(config)
    assert memory.timeline_bytes(config, 0) == memory.timeline_bytes(config, 10**6, on_disk=True) == state.nbytes
    longest = config.max_position_embeddings
    for n_tokens in (1, 3, 4, 127, 128, 5_000, 32_768, 200_001, longest - 1, longest):
        if n_tokens <= longest:
            state.reserve(n_tokens)
            assert state.nbytes == memory.timeline_bytes(config, n_tokens), n_tokens
    for layer in state.layers:  # given back, but for the large pages of what was long
        for part in layer.parts.values():
            part.trim(0)
    assert state.nbytes == memory.timeline_bytes(config, 0)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_rewind_point_holds_to_the_byte_what_is_planned(name):
    config, sizes = CONFIGS[name], []
    state = empty(config)
    for n_tokens in (0, 1, 3, 4, 7, 8, 127, 128, 131, 255, 256, 383, 512, 700, 32_767):
        state.n_tokens = n_tokens
        sizes.append(state.checkpoint().nbytes)
        assert sizes[-1] == memory.point_bytes(config, n_tokens), n_tokens
    assert max(sizes) == memory.most_point_bytes(config), "32,767 is just before blocks of every ratio close"
    assert memory.point_bytes(config, 0) == 0


def test_rewind_points_of_flash_are_no_longer_in_no_plan():
    needs = cost.needs(shape("flash"), cost.stored_tensors({}))
    assert 16 * needs.point > 163e6


SIZES = {  # of Flash's attention, its experts small
    "flash": replace(
        shape("flash", 2, n_experts=8), vocab_size=1024, moe_intermediate_size=256, compress_ratios=(4, 128)
    ),
    "nano": recipe.config(),
    "tiny": tiny.config(tiny.STORE_LIKE),
}
DEEP = 50_000  # tokens
SCRATCH = """
import json, sys
import numpy as np
from v4kernels import native
from plan.test_memory import SIZES
from v4cli.bench.fill import fill
from v4cli.bench.speed import random_engine
engine = random_engine(SIZES[sys.argv[1]], "native", "random")
session, deep = engine.session(), engine.session()
fill(deep, int(sys.argv[2]) - 600)
ids = np.arange(512) % engine.config.vocab_size
session.feed(ids)
deep.feed(ids)
for n in (1, 8):
    deep.feed(ids[:n])
print(json.dumps([engine.model.ops.nbytes, native.library().v4k_scratch_peak()]))
"""


@pytest.mark.parametrize("name", SIZES)
def test_scratch_of_a_step_is_within_what_is_planned_and_not_far_from_it(name, in_new_process):
    config, threads = SIZES[name], default_threads()
    kept, peak = in_new_process(SCRATCH, name, DEEP)
    assert kept <= memory.CHUNK * memory._row_bytes(config)
    kernels = memory._kernel_bytes(config, memory.CHUNK, DEEP, threads) + memory.SLACK
    assert peak <= kernels <= 1.5 * peak + memory.SLACK
    whole = memory.scratch_bytes(config, memory.CHUNK, DEEP, threads)
    pairs = memory.CHUNK * config.num_experts_per_tok * config.hidden_size * 8  # of experts on demand
    assert kept + peak + pairs <= whole <= 1.25 * (kept + peak + pairs) + memory.SLACK


def test_more_sessions_take_more_of_everything_but_weights():
    config = shape("flash")
    needs = cost.needs(config, cost.stored_tensors({}))
    assert needs.n_experts and needs.sessions == 1
    one, four = (cost.at_context(needs, config, 32_768, n) for n in (1, 4))
    assert one.kv == four.kv and one.scratch < four.scratch < 1.2 * one.scratch


@pytest.mark.parametrize("n_sessions", [1, 3])
@pytest.mark.parametrize("more", [0, 1, 5, 100, 10_000])
def test_plan_and_ledger_say_the_same(n_sessions, more):
    config = shape("flash", 4)
    needs = cost.needs(config, cost.stored_tensors(layout(config, "native", False)))
    needs = cost.at_context(needs, config, 32_768, n_sessions)
    least = shortage(needs, Budget(0, 0, 1, 1, 1))
    plan = make_plan(needs, Budget(least + more * needs.point, 0, 1, 1, 1))
    ledger = ledger_of(plan, needs)
    assert plan.points == min(memory.POINTS, LEAST_POINTS - 1 + more // n_sessions)
    assert ledger.points == n_sessions * (plan.points + 1) * needs.point
    assert ledger.kv == n_sessions * needs.kv.held
    if ledger.spare:
        assert ledger.items == plan.ram.holds | {"experts": plan.ram.holds.get("experts", 0)}
    assert 0 <= ledger.free < max(needs.slot, needs.embed.held) or plan.resident == 1


def test_experts_give_way_no_further_than_they_can(made):
    engine = Engine.open(made, "cpu", ram=1 << 40)
    assert engine.stream is None and engine.place.ledger.least == engine.place.ledger.slots
    tensors = cost.stored_tensors(Store.open(made).parts)
    ledger = residence(engine.config, tensors, engine.place.ledger.held + (10 << 20)).ledger
    for excess in (-5, 0, 1, ledger.slot, ledger.slot + 1, 1 << 30):
        left = ledger.with_sessions(ledger.kv + ledger.free + excess, ledger.points, ledger.scratch)
        assert left.slots == max(ledger.least, ledger.slots - max(0, -(-excess // ledger.slot)))


def test_the_session_of_a_real_engine_is_counted_by_its_owners():
    engine = random_engine(SIZES["tiny"], "native", "random")
    session = engine.session()
    session.sync(np.arange(300) % 256)
    assert session.kv_nbytes == memory.timeline_bytes(engine.config, 300) + 4 * engine.config.vocab_size
    assert engine.held is None, "nothing bounds it"
