"""v4 bench --ctx underneath: filled caches are valid, figures are those of the specification, times add up."""

import mmap
import random

import numpy as np
import pytest
import torch
from v4kernels import native

from v4cli import hardware, paths
from v4cli.bench import speed
from v4cli.bench.context import Plan, measure
from v4cli.bench.fill import ENTRIES, fill
from v4cli.bench.resident import resident
from v4cli.bench.steps import Steps, decode
from v4cli.bench.synthetic import shape
from v4cli.chat.tokenizer import Tokenizer
from v4cli.engine.engine import Engine
from v4cli.errors import UsageError
from v4cli.nano.recall import haystack
from v4cli.plan import cost, flops
from v4cli.store import library

needs_kernels = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")


@pytest.fixture(scope="module")
def nano():
    return Engine.open(library.model_folder("nano"), "cpu")


@needs_kernels
def test_a_filled_session_decodes_and_grows_without_touching_what_it_has(nano):
    session = nano.session()
    fill(session, 4 * ENTRIES + 1003)
    parts = [part for layer in session.state.layers for part in (layer.main, layer.index) if part]
    before = [part.rows["entries"].data[: session.state.n_tokens // part.ratio].copy() for part in parts]
    assert np.isfinite(session.feed([5, 6, 7])).all()
    fill(session, 5 * ENTRIES)
    assert session.state.n_tokens == len(session.tokens) == 5 * ENTRIES
    for part, old in zip(parts, before):
        assert np.array_equal(part.rows["entries"].data[: len(old)], old)
    assert np.isfinite(session.feed([8])).all()


@needs_kernels
def test_filled_entries_are_finite_vary_and_keys_are_all_different(nano):
    session, config = nano.session(), nano.config
    fill(session, 8_000)
    plain = config.head_dim - config.qk_rope_head_dim
    for layer in session.state.layers:
        main = [layer.main.rows["entries"].data[: 8_000 // layer.main.ratio]] if layer.main else []
        for rows in (layer.ring, *main):
            codes = torch.from_numpy(rows[:, :plain].copy()).view(torch.float8_e4m3fn).float()
            turned = torch.from_numpy(rows[:, plain : plain + 128].copy()).view(torch.bfloat16).float()
            assert codes.isfinite().all() and codes.std() > 1
            assert turned.abs().max() < 2.01 and turned.min() < -0.5
        if layer.index:
            assert len(np.unique(layer.index.rows["entries"].data[:2_000], axis=0)) == 2_000


@pytest.fixture
def small_probes(monkeypatch):
    """The machine's ceilings do not matter here."""
    monkeypatch.setattr(hardware, "PROBE_RAM", 1 << 22)
    monkeypatch.setattr(speed, "PRODUCT", (16, 256, 128))


@needs_kernels
def test_frontiers_count_what_the_layout_holds(nano, small_probes):
    plan = Plan((1_500, 3_000), True, 2, "native", nano.config)
    first, last = measure(nano, plan, progress=None)
    for frontier in (first, last):
        assert frontier.kv_bytes == cost.kv_bytes(nano.config, frontier.n_tokens).total
        assert frontier.retention == pytest.approx(frontier.decode_tokens_per_s / frontier.first_tokens_per_s)
        assert frontier.whole is None  # nothing was cut
        assert frontier.bound.split(":")[0] == max(frontier.parts, key=lambda name: frontier.parts[name].seconds)
    assert first.retention == 1 and first.bytes_read["index_keys"] == 0
    assert last.bytes_read["index_keys"] == 3 * 750 * 68
    assert last.prefill_tokens == 512


@needs_kernels
def test_a_prefilled_frontier_is_where_a_plain_session_would_be(nano, small_probes):
    plan = Plan((300, 700), False, 3, "native", nano.config)
    sessions = []
    plain = nano.session

    class Watched:
        """The engine, its sessions kept."""

        model, config, path = nano.model, nano.config, nano.path

        def session(self, kv_dir=None):
            sessions.append(plain(kv_dir))
            return sessions[-1]

    counted = []
    list(measure(Watched(), plan, lambda _: lambda *at: counted.append(at)))
    grown = sessions[-1]
    assert len(grown.tokens) == 700 and counted == [(294, 294), (512, 694), (694, 694)]
    fresh = nano.session()
    fresh.sync(grown.tokens)
    assert np.array_equal(fresh.logits, grown.logits)


@needs_kernels
def test_nano_is_asked_for_facts_told_before_the_first_frontier(nano, small_probes):
    tokenizer = Tokenizer.from_file(paths.NANO / "tokenizer.json")
    plan = Plan((600, 1_200), False, 2, "native", nano.config, tokenizer=tokenizer)
    recalls = [frontier.recall for frontier in measure(nano, plan, lambda n: None)]
    assert [recall.asked for recall in recalls] == [10, 10]
    assert all(recall.right >= 6 for recall in recalls)  # 6 and 8 with these weights
    ids, questions = haystack(random.Random(0), tokenizer, 1_200, told_within=600)
    assert len(ids) >= 1_200 and all(question.depth < 0.5 for question in questions)


def test_steps_are_split_by_part_and_layer():
    def step(layer_s):
        """Two layers, the second with index and attention; each kernel takes a second, gaps half a second."""
        names = ["embed", *("hyper_pre", "attend", "hyper_pre", "experts") * 2, "select", "hyper_head", "linear"]
        calls = [(name, i * layer_s, i * layer_s + 1) for i, name in enumerate(names)]
        return len(names) * layer_s, calls

    steps = Steps([1.0, 5.0, 2.0], [step(1.5), step(1.5), step(9.0)])
    assert steps.median == 2.0
    assert steps.parts([0, 4], [0, 4]) == {"weights": 9.0, "index": 1.0, "attention": 2.0, "python": 6.0}
    kinds = steps.kinds([0, 4])
    assert kinds[0] == {"weights": 3.0, "index": 0.0, "attention": 1.0, "python": 2.0}
    assert kinds[4] == {"weights": 3.0, "index": 1.0, "attention": 1.0, "python": 2.5}
    assert kinds[None] == {"weights": 3.0, "index": 0.0, "attention": 0.0, "python": 1.5}
    whole = steps.parts([0, 4], [0, 0, 4, 4, 4])
    assert whole == {part: kinds[None][part] + 2 * kinds[0][part] + 3 * kinds[4][part] for part in whole}


@needs_kernels
def test_a_step_under_the_clock_is_the_same_step_and_shows_its_parts(nano):
    sessions = [nano.session(), nano.session()]
    for session in sessions:
        session.sync([i % 1000 for i in range(2_500)])
    for token in range(130):  # a block of every ratio closes
        plain = sessions[0].feed([token])
        with speed.clocked(nano.model.ops) as clock:
            assert np.array_equal(sessions[1].feed([token]), plain)
    kernels = [kernel for kernel, _, _ in clock.calls]
    assert kernels.count("select") == 3 and kernels.count("attend") == 6  # layers with an indexer; all


@needs_kernels
def test_sessions_decode_in_turns_and_alike(nano):
    sessions = [nano.session(), nano.session()]
    both = decode(sessions, [3, 1, 4, 1])
    assert sessions[0].tokens == sessions[1].tokens == [3, 1, 4, 1]
    assert all(len(steps.seconds) == len(steps.clocked) == 2 for steps in both)
    library = nano.model.ops.library
    assert not hasattr(library, "calls")  # the clock is gone


def test_kv_and_work_of_a_million_tokens_are_the_published_ones():
    flash, pro = shape("flash"), shape("pro")
    assert round(cost.kv_bytes_per_token(flash)) == 3514
    parts = cost.kv_read_parts(flash, 1 << 20)
    assert parts["index_keys"] == 374_341_632  # spec 4.1: every key is read
    assert parts["window"] == 3_214_336
    assert parts["csa_entries"] == 21 * 512 * 584 and parts["hca_entries"] == 20 * 8192 * 584
    assert cost.kv_read_parts(pro, 4_096)["index_keys"] == 0  # all 1,024 entries are chosen: none is scored
    for config, percent in ((flash, 10.2), (pro, 27.0)):
        ratio = flops.flops(config, 10**6).fp8_equivalent / flops.v32_flops(10**6).fp8_equivalent
        assert round(100 * ratio, 1) == percent
    f = flops.flops(flash, 10**6)
    everything = f.linear + f.compressor + f.indexer_projection + f.indexer_scores + f.attention + f.ffn
    assert flops.token_macs(flash, 10**6) == pytest.approx(everything / 2)


@pytest.mark.parametrize(
    "frontiers, words", [((500, 2_000), "too close"), ((2_000, 2_100), "too close"), ((2_000, 1 << 21), "1,048,576")]
)
def test_frontiers_that_cannot_be_measured_are_refused(frontiers, words):
    with pytest.raises(UsageError, match=words):
        Plan(frontiers, True, 8, "native", shape("flash")).check()


def test_resident_counts_memory_and_files_of_the_cache_only(tmp_path):
    size = 64 << 20
    before = resident(tmp_path)
    memory = np.ones(size, np.uint8)
    after = resident(tmp_path)
    assert abs(after - before - size) < 8 << 20
    with (tmp_path / "kv").open("wb+") as file:
        file.truncate(size)
        held = mmap.mmap(file.fileno(), size)
        held[: size // 2] = bytes(size // 2)
        assert abs(resident(tmp_path) - after - size // 2) < 8 << 20
        assert abs(resident(tmp_path / "elsewhere") - after) < 8 << 20
        held.close()
    del memory
