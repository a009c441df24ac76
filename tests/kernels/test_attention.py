"""Selection and attention on every tier: against float64, and for any chunking."""

import ctypes

import numpy as np
import pytest
import torch
from layer_parts import (
    DIM,
    EPS,
    FREQS,
    HEADS,
    RANK,
    WINDOW,
    D,
    f64,
    node,
    packed_layer,
    run_attention,
    turned,
    unpacked,
    values,
)
from v4kernels import native
from v4kernels.reference.quant import fake_fp4, hadamard


def index_scores(attn, q, w, keys, n):
    """Scores of the first n entries for queries q (heads, dims) and weights w (heads,)."""
    out = np.empty(n, np.float32)
    pointers = q.ctypes.data, w.ctypes.data, keys.entries, keys.scales, n, out.ctypes.data
    native.checked(native.library().v4k_index_scores(ctypes.addressof(attn.bound.indexer), *pointers))
    return out


def chosen(ops, attn, layer, x, qr, start):
    return ops.select(attn, x, qr, ops.rotations(FREQS, start, len(x)), start, layer.index)


def test_index_scores_are_exact_and_the_best_are_chosen(ops):
    attn, n = node(4), 4 * 700
    layer, x, qr = packed_layer(attn), values(1, n, D), values(2, n, RANK)
    ops.compress(attn.bound.keys, x, 0, layer.index)
    codes, scales = (rows.data[: n // 4].copy() for rows in layer.index.rows.values())
    e2m1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    magnitudes = torch.stack((torch.from_numpy(codes & 7), torch.from_numpy(codes >> 4 & 7)), -1).flatten(1).long()
    negative = torch.stack((torch.from_numpy(codes & 8), torch.from_numpy(codes >> 4 & 8)), -1).flatten(1) > 0
    k = torch.where(negative, -e2m1[magnitudes], e2m1[magnitudes]).double().unflatten(1, (4, 32))
    k = (k * 2.0 ** (torch.from_numpy(scales).double() - 127)[..., None]).flatten(1)
    q, w = values(3, 5, 128), values(4, 5)
    dots = fake_fp4(hadamard(torch.from_numpy(q))).double() @ k.T
    want = (torch.from_numpy(w).double()[:, None] * dots.relu()).sum(0)
    got = index_scores(attn, q, w, layer.index.native, n // 4)
    assert (f64(got) - want).abs().max() <= 8 * EPS * (np.abs(w)[:, None] * dots.relu().numpy()).sum(0).max()
    for at, row in enumerate(chosen(ops, attn, layer, x[-6:], qr[-6:], n - 6), n - 6):
        assert list(row) == sorted(set(row)) and 0 <= row[0] and row[-1] < (at + 1) // 4
        assert np.array_equal(chosen(ops, attn, layer, x[at : at + 1], qr[at : at + 1], at)[0], row)


@pytest.mark.parametrize("threads, heads", [(1, 5), (3, 5), (1, 37)])
def test_the_best_of_many_keys_are_those_of_the_highest_scores(ops, threads, heads):
    """Against a stable sort of all scores, for one token and many; thousands of keys are the same."""
    attn, n, before = node(4, top_k=100, index_heads=heads), 4 * 20_000, native.threads()
    ix, layer, x, qr = attn.indexer, packed_layer(attn), values(1, 40, D), values(2, 40, RANK)
    x[7] = -torch.linalg.pinv(f64(ix.weights_proj)).sum(1).numpy()  # all its weights are -1, its best scores zero
    layer.index.reserve(n)
    codes, scales = (rows.data[: rows.used] for rows in layer.index.rows.values())
    codes[:] = np.random.default_rng(3).integers(0, 256, codes.shape, np.uint8)
    scales[:] = np.random.default_rng(4).integers(124, 130, scales.shape, np.uint8)
    codes[5000:9000], scales[5000:9000] = codes[5000], scales[5000]
    first = n - 40
    q = native.linear(torch.from_numpy(qr), ix.wq_b.matrix).unflatten(1, (ix.heads, ix.head_dim)).double()
    q = turned(q, range(first, n)).float().numpy()
    w = native.linear(torch.from_numpy(x), ix.weights_proj.matrix).numpy() * np.float32((128 * ix.heads) ** -0.5)
    assert not (w[7] > 0).any() and (w[0] > 0).any()
    native.set_threads(threads)
    whole = chosen(ops, attn, layer, x, qr, first)
    for i in (0, 7, 39):
        scores = index_scores(attn, q[i], w[i], layer.index.native, (first + i + 1) // 4)
        want = np.sort(np.argsort(-scores, kind="stable")[: ix.top_k])
        assert np.array_equal(whole[i], want)
        assert np.array_equal(chosen(ops, attn, layer, x[i : i + 1], qr[i : i + 1], first + i)[0], want)
    native.set_threads(before)


def test_ties_go_to_the_lower_entry_and_few_entries_are_all_chosen(ops):
    attn = node(4)
    layer = packed_layer(attn)
    x = np.tile(values(1, 4, D), (30, 1))  # from the second block on all keys differ by rotation only
    ops.compress(attn.bound.keys, x, 0, layer.index)
    for rows in layer.index.rows.values():
        rows.data[: rows.used] = rows.data[3]
    turns = ops.rotations(FREQS, 20, 100)
    rows = ops.select(attn, x[20:], values(2, 100, RANK), turns, 20, layer.index)
    assert list(rows[0]) == [0, 1, 2, 3, 4, -1, -1, -1]
    assert (rows[30:] == np.arange(8)).all()


@pytest.mark.parametrize("ratio", [0, 4, 128])
def test_attention_over_window_and_entries(ops, ratio):
    attn, n = node(ratio), 700
    x, layer = values(1, n, D), packed_layer(attn)
    if ratio:
        ops.compress(attn.bound.main, x, 0, layer.main)
    q = values(3, n, HEADS * DIM) * (
        np.arange(HEADS, dtype=np.float32).repeat(DIM) * np.float32(0.3)
    )  # a flat head, sharp ones
    chosen = None
    if ratio == 4:  # more than one partial result's worth
        chosen = np.full((n, 300), -1, np.int32)
        for i in range(n):
            seen = (i + 1) // 4
            some = np.sort(np.random.default_rng(i).permutation(seen)[:300])
            chosen[i, : len(some)] = some
    whole, latents = run_attention(ops, attn, layer, x, q, chosen, (n,))
    entries = unpacked(layer.main.rows["entries"].data[: n // ratio]) if ratio else None
    for i in (0, 1, 15, 16, 127, 128, 650, n - 1):
        keys = [latents[max(0, i - WINDOW + 1) : i + 1]]
        if ratio == 4:
            keys.append(entries[torch.from_numpy(chosen[i][chosen[i] >= 0]).long()])
        elif ratio:
            keys.append(entries[: (i + 1) // ratio])
        keys = torch.cat(keys)
        scores = torch.cat((f64(q[i]).unflatten(0, (HEADS, DIM)) @ keys.T, f64(attn.sink)[:, None]), 1)
        want = turned(((scores.softmax(1)[:, :-1]) @ keys)[None], [i], inverse=True)[0]
        got = f64(whole[i]).unflatten(0, (HEADS, DIM))
        # scores up to 60 carry their dot's error into the weights
        assert (got - want).abs().max() < 300 * EPS * keys.abs().max()
    chunked, _ = run_attention(ops, attn, packed_layer(attn), x, q, chosen, (1, 2, 17, 40, 300, 301, n), layer.main)
    assert np.array_equal(whole, chunked)


def test_attention_survives_extreme_scores_and_sinks(ops):
    attn, x = node(), values(1, 3, D)
    attn.sink[:] = [80, -80, 0, 200, -200, 1]
    q = values(2, 3, HEADS * DIM, spread=30.0)
    out, _ = run_attention(ops, attn, packed_layer(attn), x, q, None, (3,))
    assert np.isfinite(out).all()
    q[1, :DIM] = np.nan
    out, _ = run_attention(ops, attn, packed_layer(attn), x, q, None, (3,))
    assert np.isnan(out[1, :DIM]).all() and np.isfinite(out[0]).all() and np.isfinite(out[1, DIM:]).all()


@pytest.mark.parametrize("ratio", [0, 4, 128])
def test_attention_in_one_call_is_its_steps_one_after_the_other(ops, ratio):
    """Before and after there are more than top_k entries to choose from."""
    attn, x = node(ratio), values(1, 150, D)
    whole, stepwise = packed_layer(attn), packed_layer(attn)
    for start, stop in ((0, 20), (20, 21), (21, 149), (149, 150)):
        given, turns = x[start:stop], ops.rotations(FREQS, start, stop - start)
        got = ops.self_attention(attn, given, turns, [(whole, start, stop - start)])
        selected, (q, qr) = None, ops.queries(attn, given, turns)
        fresh = ops.window_entries(attn, given, turns)
        if ratio:
            ops.compress(attn.bound.main, given, start, stepwise.main)
        if ratio == 4:
            ops.compress(attn.bound.keys, given, start, stepwise.index)
            selected = ops.select(attn, given, qr, turns, start, stepwise.index)
            assert (selected is None) == (stop // 4 <= attn.indexer.top_k)
        heads = ops.attend(attn, q, turns, start, stepwise, fresh, selected)
        assert np.array_equal(got, ops.attention_output(attn, heads))
        assert np.array_equal(whole.ring, stepwise.ring)


@pytest.mark.parametrize("ratio", [0, 4, 128])
def test_rows_of_several_timelines_give_what_each_gives_alone(ops, ratio):
    attn, x = node(ratio), values(1, 400, D)
    lengths = (3, 130, 31, 260)  # tokens before; some choose among entries, some attend to all
    before = [x[100 - i : 100 - i + n] for i, n in enumerate(lengths)]
    layers = [[packed_layer(attn) for _ in lengths] for _ in range(2)]
    for alone_or_together in layers:
        for layer, given in zip(alone_or_together, before):
            ops.self_attention(attn, given, ops.rotations(FREQS, 0, len(given)), [(layer, 0, len(given))])
    rows = (1, 40, 2, 1)
    turns = [ops.rotations(FREQS, start, n) for start, n in zip(lengths, rows)]
    given = [values(7 + i, n, D) for i, n in enumerate(rows)]
    spans = [(layer, start, n) for layer, start, n in zip(layers[0], lengths, rows)]
    together = ops.self_attention(attn, np.concatenate(given), np.concatenate(turns), spans)
    alone = [
        ops.self_attention(attn, each, turn, [(layer, start, n)])
        for each, turn, layer, start, n in zip(given, turns, layers[1], lengths, rows)
    ]
    assert np.array_equal(together, np.concatenate(alone))
    for one, other, start, n in zip(*layers, lengths, rows):
        assert all(np.array_equal(a, b) for a, b in zip(one.mark(start + n).values(), other.mark(start + n).values()))
        ends = (layer.entries(0, start + n) for layer in (one, other))
        assert all(np.array_equal(a, b) for a, b in zip(*(end.values() for end in ends)))


@pytest.mark.parametrize("ratio", [0, 4, 128])
def test_going_back_over_the_spare_rows_needs_nothing_but_the_earlier_start(ops, ratio):
    """Wherever in its blocks a timeline is, and whatever was fed behind the place it goes back to."""
    attn, x, wrong = node(ratio), values(1, 400, D), values(2, 400, D)
    for n, n_back, step in (
        (200, 16, 16),
        (200, 16, 1),
        (131, 5, 5),
        (129, 3, 1),
        (30, 16, 16),
        (258, 7, 3),
        (16, 16, 8),
    ):
        layer, other, at = packed_layer(attn), packed_layer(attn), n - n_back
        for one in (layer, other):
            if at:
                ops.self_attention(attn, x[:at], ops.rotations(FREQS, 0, at), [(one, 0, at)])
        for start in range(at, n, step):
            rows = min(step, n - start)
            turns = ops.rotations(FREQS, start, rows)
            ops.self_attention(attn, wrong[start : start + rows], turns, [(layer, start, rows)])
        for start, stop in ((at, at + 1), (at + 1, at + 130)):
            turns = ops.rotations(FREQS, start, stop - start)
            got, want = (
                ops.self_attention(attn, x[start:stop], turns, [(one, start, stop - start)]) for one in (layer, other)
            )
            assert np.array_equal(got, want), (n, n_back, step)
