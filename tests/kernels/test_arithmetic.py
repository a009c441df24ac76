"""Every tier computes bit for bit what v4k.h says, and its functions are as near to the true ones as it says."""

import ctypes
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from arithmetic import F, exp, fma, lanes, log1p, norm, sinkhorn, sqrt_softplus, tree
from layer_parts import DIM, FREQS, HEADS, ROPE, WINDOW, matrix, node, packed_layer, run_attention, unpacked, values
from v4kernels import native
from v4kernels.cpu import PackedWeight
from v4kernels.cpu.bound import BoundHyper, BoundMixture, pointer
from v4kernels.tree import Expert, Hyper, Mixture

EXP, SQRT_SOFTPLUS = 1, 2
KERNELS = Path(__file__).parents[2] / "kernels" / "cpu"


def floats(low, high, n):
    """About n fp32 numbers in [low, high), 0 < low, as dense at every magnitude."""
    first, last = np.array([low, high], F).view(np.int32)
    return np.arange(first, last, max(1, (last - first) // n), dtype=np.int32).view(F)


def apart(got, want):
    """The largest distance of fp32 numbers from long doubles, in ulps of these."""
    return np.abs((got - want) / np.spacing(np.abs(want).astype(F))).max()


def elementary(function, x):
    y = np.empty_like(x)
    native.checked(native.library().v4k_elementary(function, pointer(x), len(x), pointer(y)))
    return y


def same(got, want):
    return np.array_equal(np.asarray(got, F).view(np.int32), np.asarray(want, F).view(np.int32))


def test_exp_is_as_near_as_is_written_and_the_same_everywhere(tier):
    x = np.concatenate((floats(1e-9, 88, 200_003), -floats(1e-9, 87, 200_001), np.zeros(1, F)))
    got = elementary(EXP, x)
    assert same(got, exp(x))
    assert apart(got, np.exp(x.astype(np.longdouble))) < 0.94
    edges = elementary(EXP, np.array([np.nan, np.inf, -np.inf, 88, -87, 1e30], F))
    assert np.isnan(edges[0]) and same(edges[[1, 5]], edges[[3, 3]]) and edges[2] == edges[4] > 0


def test_sqrt_softplus_is_as_near_as_is_written_and_never_zero(tier):
    x = np.concatenate((floats(1e-9, 1e5, 200_003), -floats(1e-9, 174, 200_002)))
    got = elementary(SQRT_SOFTPLUS, x)
    assert same(got, sqrt_softplus(x))
    exact = x.astype(np.longdouble)
    assert apart(got, np.sqrt(np.maximum(exact, 0) + np.log1p(np.exp(-np.abs(exact))))) < 1.51
    edges = elementary(SQRT_SOFTPLUS, np.array([np.nan, np.inf, -np.inf, -1e30], F))
    assert np.isnan(edges[0]) and np.isinf(edges[1]) and (edges[2:] > 0).all()


def test_log1p_is_as_near_as_is_written():
    t = floats(1e-30, 1, 300_000)
    assert apart(log1p(t), np.log1p(t.astype(np.longdouble))) < 1.06


def test_rotations_are_the_nearest_fp32(ops):
    for start in (0, 4_000, 131_072, 1_048_000):
        angles = np.arange(start, start + 500).astype(F)[:, None] * FREQS
        turns = ops.rotations(FREQS, start, 500).reshape(500, -1, 2)
        exact = angles.astype(np.longdouble)
        for got, want in ((turns[..., 0], np.cos(exact)), (turns[..., 1], np.sin(exact))):
            assert apart(got[want != 0], want[want != 0]) < 0.5001


def test_nothing_that_computes_calls_the_functions_of_libm():
    called = re.compile(r"\b(?:exp|exp2|expm1|log|log1p|log2|pow|sin|cos|tan|tanh|erf|cbrt)f?\(")
    for source in KERNELS.iterdir():
        assert not called.findall(re.sub(r"//.*", "", source.read_text())), source


def test_fp32_and_bf16_products_are_sums_in_64_lanes(tier):
    """Widths with half a step at the end, and more than a block of columns; every shape of tile."""
    for rows, cols, n in ((5, 32, 3), (33, 96, 1), (9, 160, 17), (6, 1120, 5), (5, 2144, 2)):
        x = values(1, n, cols) * np.exp2(np.arange(n, dtype=F) * 9 - 30)[:, None]
        w = values(2, rows, cols)
        halves = (w.view(np.uint32) >> 16).astype(np.uint16)
        for form, codes, exact in (("f32", w, w), ("bf16", halves, (halves.astype(np.uint32) << 16).view(F))):
            got = native.linear(torch.from_numpy(x), PackedWeight.of(form, codes).matrix).numpy()
            assert same(got, lanes(64, x[:, None], exact[None])), (form, rows, cols, n)


@pytest.mark.parametrize("streams, dim", [(4, 96), (3, 32), (7, 128), (1, 64)])
def test_hyper_connections_are_what_is_written(ops, streams, dim):
    s, n, eps = streams, 3, F(1e-6)
    hyper = Hyper(
        fn=values(1, s * s + 2 * s, s * dim, spread=(s * dim) ** -0.5), base=values(2, s * s + 2 * s, spread=2.0),
        scale=values(3, 3, spread=3.0), norm=values(4, dim), streams=s, iters=20, norm_eps=1e-6, eps=1e-6,
    )  # fmt: skip
    given = values(5, n, s * dim, spread=2.0)
    x, mix = ops.hyper_pre(given, BoundHyper(hyper))
    m = lanes(64, given[:, None], hyper.fn[None])
    rho = F(1) / np.sqrt(lanes(64, given, given) / F(s * dim) + eps)
    m = m * rho[:, None] * hyper.scale.repeat([s, s, s * s]) + hyper.base
    gates = F(1) / (F(1) + exp(-m[:, : 2 * s]))
    comb = np.stack([sinkhorn(row.reshape(s, s), 20, eps).ravel() for row in m[:, 2 * s :]])
    assert same(mix, np.concatenate((F(2) * gates[:, s:], comb), 1))
    pre, each = gates[:, :s] + eps, given.reshape(n, s, dim)
    collapsed = pre[:, :1] * each[:, 0]
    for j in range(1, s):
        collapsed = collapsed + pre[:, j : j + 1] * each[:, j]
    assert same(x, norm(collapsed, hyper.norm, 1e-6))
    out = values(6, n, dim)
    done = ops.hyper_post(out, given, mix, BoundHyper(hyper)).reshape(n, s, dim)
    for k in range(s):
        want = mix[:, k : k + 1] * out
        for j in range(s):
            want = want + mix[:, s + j * s + k][:, None] * each[:, j]
        assert same(done[:, k], want)


def test_router_scores_and_weights_are_what_is_written(ops):
    gate, bias, x = matrix(1, 45, 96), values(2, 45), values(3, 9, 96, spread=20.0)
    expert = Expert(**dict.fromkeys(("w1", "w3", "w2"), PackedWeight.of("f32", values(1, 32, 32))))
    ffn = Mixture(
        gate=gate, gate_bias=bias, tid2eid=None, experts=[expert], shared=expert, top_k=5, scale=1.5, limit=10.0
    )
    ids, weights, by = ops.route(BoundMixture(ffn), x, np.zeros(9, np.int64))
    scores = sqrt_softplus(lanes(64, x[:, None], gate.owners[0][None]))
    assert same(by, scores + bias)
    chosen = np.take_along_axis(scores, ids, 1)
    total = np.zeros(9, F)
    for j in range(5):
        total = total + chosen[:, j]
    assert same(weights, chosen / total[:, None] * F(1.5))


def indexer(heads, dims):
    """An indexer of zeros: only its sizes matter for v4k_index_scores."""
    owners = np.zeros((heads * dims, 32), F), np.zeros((heads, 32), F)
    of = [native.Matrix(a.ctypes.data, None, *a.shape, native.FORMATS["f32"].id) for a in owners]
    return native.Indexer(*of, heads, dims, 32, 8), owners


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 7, 24, 37, 64])
def test_index_scores_are_two_trees_over_heads(tier, heads):
    """Of all signs of weights; 64 dims, so that a query of e2m1 values can be turned to and back without rounding."""
    rng, dims, n = np.random.default_rng(heads), 64, 200
    grid = np.array([0, 1, 2, 3, 4, 6, 8, 12])
    doubled = grid[rng.integers(0, 8, (heads, dims))] * rng.choice([-1, 1], (heads, dims))
    doubled[:, ::32] = 12  # so that the scale of each group is the one below
    q_scale = np.exp2(rng.integers(-3, 3, (heads, 2))).astype(F)
    hadamard = np.array([[(-1) ** (i & j).bit_count() for j in range(dims)] for i in range(dims)])
    q = ((doubled / 2 * q_scale.repeat(32, 1)) @ hadamard / 8).astype(F)
    codes, scales = rng.integers(0, 256, (n, dims // 2), np.uint8), rng.integers(120, 131, (n, 2), np.uint8)
    nibbles = np.stack((codes & 15, codes >> 4), -1).reshape(n, dims).astype(np.int64)
    keys = np.where(nibbles & 8, -1, 1) * grid[nibbles & 7]
    s = np.zeros((heads, n), F)
    for g in range(2):
        exact = doubled[:, 32 * g : 32 * g + 32] @ keys[:, 32 * g : 32 * g + 32].T
        scale = np.exp2(scales[:, g].astype(F) - F(127)) * (F(0.25) * q_scale[:, g : g + 1])
        s = fma(exact.astype(F), scale, s)
    described, _owners = indexer(heads, dims)
    for weights in (values(heads, heads), np.abs(values(1, heads)), -np.abs(values(2, heads)), np.zeros(heads, F)):
        terms, up = weights[:, None] * np.maximum(s, F(0)), weights > 0
        want, got = tree(terms[up]) + tree(terms[~up]), np.empty(n, F)
        at = ctypes.addressof(described), pointer(q), pointer(weights), pointer(codes), pointer(scales)
        native.checked(native.library().v4k_index_scores(*at, n, pointer(got)))
        assert same(got, want)


def attended(q, keys, sink):
    """One head's attention over keys (n, d), not turned back."""
    runs = []
    for first in range(0, len(keys), 256):
        peak, total, out = F(-np.inf), F(0), np.zeros(keys.shape[1], F)
        for at in range(first, min(first + 256, len(keys)), 64):
            some = keys[at : min(at + 64, first + 256)]
            scores = lanes(8, q, some)
            top = max(peak, scores.max())
            factor = F(0) if total == 0 else exp(np.array([peak - top], F))[0]
            weights, padded = exp(scores - top), np.zeros(64, F)
            padded[: len(some)] = weights
            total, out, peak = total * factor + lanes(8, padded, F(1)), out * factor, top
            for weight, value in zip(weights, some):
                out = fma(weight, value, out)
        runs.append((peak, total, out))
    peak, total, out = runs[0]
    for other, more, values_of in runs[1:]:
        top = max(peak, other)
        t, f = exp(np.array([peak - top, other - top], F))
        peak, total, out = top, total * t + more * f, out * t + values_of * f
    top = max(peak, sink)
    f, s = exp(np.array([peak - top, sink - top], F))
    return out * (f / (total * f + s))


def test_attention_is_blocks_and_runs_in_order(ops):
    attn, n = node(4), 2400
    x, layer, q = values(1, n, 96), packed_layer(attn), values(3, n, HEADS * DIM, spread=0.3)
    ops.compress(attn.bound.main, x, 0, layer.main)
    chosen = np.tile(np.arange(590, dtype=np.int32), (n, 1))
    chosen[chosen >= (np.arange(n)[:, None] + 1) // 4] = -1
    got, latents = run_attention(ops, attn, layer, x, q, chosen, (2390, n))
    entries = unpacked(layer.main.rows["entries"].data[: n // 4]).numpy().astype(F)
    turns = ops.rotations(FREQS, 0, n).reshape(n, -1, 2)
    for i in (5, 250, 2300, n - 1):
        window = latents[max(0, i - WINDOW + 1) : i + 1].numpy().astype(F)
        keys = np.concatenate((window, entries[chosen[i][chosen[i] >= 0]]))
        for h in range(HEADS):
            want = attended(q[i, h * DIM : (h + 1) * DIM], keys, attn.sink[h])
            a, b = want[-ROPE::2].copy(), want[-ROPE + 1 :: 2].copy()
            c, s = turns[i, :, 0], -turns[i, :, 1]
            want[-ROPE::2], want[-ROPE + 1 :: 2] = a * c - b * s, a * s + b * c
            assert same(got[i, h * DIM : (h + 1) * DIM], want), (i, h)
