"""nano end to end as compiled PTX: tokens and logits are the CPU's to the bit, whatever goes on beside them."""

import numpy as np
import ptx
import pytest
from v4kernels import backend, native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import gpu_models
from v4kernels.triton import state as device_state

from v4cli.engine.engine import Engine, identity_of
from v4cli.store.store import open_model

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
RNG = np.random.default_rng(11)
N = 32  # greedy tokens


@pytest.fixture(scope="module")
def model():
    config, tree = gpu_models.nano()
    return gpu_models.both(config, tree)


def prompt(n: int) -> list[int]:
    return RNG.integers(0, 1024, n).tolist()


def greedy(model, ids: list[int], n: int) -> list[int]:
    """What the CPU goes on with."""
    state, made = model.cpu.new_state(), []
    while len(made) < n:
        logits = model.cpu.logits(model.cpu.forward([(ids, state)]))
        ids = [int(logits[-1].argmax())]
        made += ids
    return made


def test_greedy_tokens_and_logits_are_the_cpus_while_entries_grow(model, monkeypatch):
    """The tokens that the CPU chooses are fed, eight at a time. Where logits are the same the device would have chosen
    them, and rows do not see what comes behind them, so this is what it gives one by one."""
    monkeypatch.setattr(device_state, "LEAST_ROOM", 1)
    first, states = prompt(8), model.states()
    tokens = [*first, *greedy(model, first, N)]
    rooms, chosen = set(), []
    for at in range(0, len(tokens), 8):
        chosen += model.same([(tokens[at : at + 8], states)]).argmax(1).tolist()
        rooms.add(states[1].layers[1].parts["main"].room)
    assert chosen[len(first) - 1 : -1] == tokens[len(first) :] and len(rooms) > 3
    assert set(model.gpu.ops._graphs) == {8} and model.device.recordings == 1


@pytest.mark.slow
def test_greedy_tokens_one_by_one_are_the_cpus(model):
    ids, (cpu, gpu) = prompt(20), model.states()
    want = greedy(model, ids, N)
    made = []
    while len(made) < N:
        logits = model.same([(ids, (cpu, gpu))])
        ids = [int(logits[-1].argmax())]
        made += ids
    assert made == want


def test_sessions_share_steps_and_their_record_whoever_comes(model):
    a, b = model.states(), model.states()
    model.same([(prompt(9), a)])  # by matrix units
    model.same([(prompt(3), b)])
    made = model.device.recordings
    for _ in range(2):
        model.same([(prompt(2), a), (prompt(1), b)])
    model.same([(prompt(1), b), (prompt(2), a)])
    assert model.device.recordings - made == 1
    held = a[0].n_tokens
    model.same([(prompt(3), a)])
    assert all(state.back(held - 2) for state in a)  # a rewind that needs no copy
    twins = tuple(state.fork() for state in a)
    model.same([(prompt(3), a)])
    model.same([(prompt(1), twins), (prompt(2), b)])
    assert model.device.recordings - made == 1


def test_who_watches_sees_the_streams_of_the_cpu(model):
    """A step that somebody watches is walked, though others of so many rows are played."""
    ids = prompt(1)
    for _ in range(2):
        model.gpu.forward([(ids, model.gpu.new_state())])

    def streams_of(one, values):
        seen = []
        one.forward([(ids, one.new_state())], lambda name, streams: seen.append((name, values(streams).tobytes())))
        return seen

    want = streams_of(model.cpu, lambda streams: streams.array())
    assert len(want) == 1 + 2 * model.config.num_hidden_layers
    assert streams_of(model.gpu, model.gpu.ops.dense.values) == want


def test_what_one_backend_computed_the_other_goes_on_with(model):
    cpu, gpu = model.states()
    ids = prompt(300)
    model.cpu.forward([(ids, cpu)])
    gpu.put(0, 300, cpu.entries(0, 300))
    gpu.restore(cpu.checkpoint())
    model.same([(prompt(3), (cpu, gpu))])
    again = model.cpu.new_state()
    again.put(0, 303, gpu.entries(0, 303))
    again.restore(gpu.checkpoint())
    more = prompt(5)
    want = model.cpu.logits(model.cpu.forward([(more, cpu)]))
    assert np.array_equal(want, model.cpu.logits(model.cpu.forward([(more, again)])))


def test_a_prefix_that_one_backend_stored_the_other_takes_up(model, tmp_path):
    """Both ways, through files."""
    identity = identity_of(open_model(gpu_models.NANO), backend("cpu"))
    engines = [Engine(one, gpu_models.NANO, 0.0, identity) for one in (model.cpu, model.gpu)]
    ids = prompt(160)
    cpu, gpu = (engine.session(prefixes=engine.prefixes(tmp_path, 1 << 30, 1 << 30), worth_s=0.0) for engine in engines)
    cpu.sync(ids[:150])
    assert gpu.sync(ids[:158]) and (gpu.stats.restored_tokens, gpu.stats.prefill_tokens) == (150, 8)
    other = engines[0].session(prefixes=engines[0].prefixes(tmp_path, 1 << 30, 1 << 30), worth_s=0.0)
    assert other.sync(ids) and other.stats.restored_tokens == 158
    assert cpu.sync(ids) and np.array_equal(cpu.logits, other.logits)


def test_a_line_that_names_no_table_is_caught(model):
    _, state = model.states()
    for _ in range(2):
        model.gpu.forward([(prompt(1), state)])
    state.timeline.table.at += 1 << 19
    with pytest.raises(ptx.OutOfBounds):
        model.gpu.forward([(prompt(1), state)])
