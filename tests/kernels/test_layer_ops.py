"""The ops of a layer around its attention, on every tier: against float64, bit for bit against the scalar tier."""

import numpy as np
import pytest
import torch
from layer_parts import (
    DIM,
    EPS,
    FREQS,
    HEADS,
    D,
    S,
    almost_all_equal,
    f64,
    matrix,
    node,
    on_scalar,
    packed_layer,
    rms,
    run_attention,
    stored,
    turned,
    unpacked,
    values,
)
from v4kernels import native
from v4kernels.cpu import PackedWeight
from v4kernels.cpu.bound import BoundHyper, BoundMixture
from v4kernels.reference.equations import sinkhorn
from v4kernels.tree import Expert, Hyper, Mixture


def test_fp32_and_bf16_products(ops):
    x = values(1, 7, 96) * np.exp2(np.arange(7, dtype=np.float32)[:, None] * 9 - 40)
    x[3], x[4, ::2] = 0, 1e-42
    for form in ("f32", "bf16"):
        w = values(2, 45, 96)
        codes = w if form == "f32" else (w.view(np.uint32) >> 16).astype(np.uint16)
        exact = w if form == "f32" else (codes.astype(np.uint32) << 16).view(np.float32)
        packed = PackedWeight.of(form, codes)
        y = native.linear(torch.from_numpy(x), packed.matrix)
        want, size = f64(x) @ f64(exact).T, f64(x).abs() @ f64(exact).abs().T
        assert ((y.double() - want).abs() <= (96 / 8 + 4) * EPS * size + 1e-43).all()
        assert torch.equal(native.linear(torch.from_numpy(x[5:6]), packed.matrix)[0], y[5])
        assert on_scalar(ops, lambda m=packed.matrix: [native.linear(torch.from_numpy(x), m).numpy()])


@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_hyper_connections(ops, spread):
    hyper = Hyper(
        fn=values(1, S * S + 2 * S, S * D, spread=spread * (S * D) ** -0.5), base=values(2, S * S + 2 * S),
        scale=values(3, 3), norm=values(4, D), streams=S, iters=20, norm_eps=1e-6, eps=1e-6,
    )  # fmt: skip
    bound = BoundHyper(hyper)
    streams, out = values(5, 3, S * D), values(6, 3, D)
    x, mix = ops.hyper_pre(streams, bound)
    flat = f64(streams)
    m = flat @ f64(hyper.fn).T * torch.rsqrt(flat.square().mean(-1, keepdim=True) + 1e-6)
    scale, base = f64(hyper.scale), f64(hyper.base)
    pre = torch.sigmoid(m[:, :S] * scale[0] + base[:S]) + 1e-6
    post = 2 * torch.sigmoid(m[:, S : 2 * S] * scale[1] + base[S : 2 * S])
    comb = sinkhorn((m[:, 2 * S :] * scale[2] + base[2 * S :]).unflatten(1, (S, S)), 20, 1e-6)
    want = rms((pre[..., None] * flat.unflatten(1, (S, D))).sum(1), f64(hyper.norm))
    noise = 400 * EPS * max(1, spread)  # 40 normalisations of sums of four, of numbers that carry the dot's error
    assert (f64(x) - want).abs().max() < noise * want.abs().max()
    assert (f64(mix) - torch.cat((post, comb.flatten(1)), 1)).abs().max() < noise
    got = ops.hyper_post(out, streams, mix, bound)
    want = post[..., None] * f64(out)[:, None] + torch.einsum("njk,njd->nkd", comb, flat.unflatten(1, (S, D)))
    assert (f64(got).unflatten(1, (S, D)) - want).abs().max() < 2 * noise * want.abs().max()
    assert np.array_equal(ops.hyper_pre(streams[1:2], bound)[0][0], x[1])


def test_queries_are_normed_and_turned(ops):
    attn, x, start = node(), values(1, 5, D), 1000
    q, qr = ops.queries(attn, x, ops.rotations(FREQS, start, 5))
    low = rms(f64(x) @ f64(attn.wq_a).T, f64(attn.q_norm))
    assert (f64(qr) - low).abs().max() < 40 * EPS * low.abs().max()
    want = turned(rms((low @ f64(attn.wq_b).T).unflatten(1, (HEADS, DIM))), range(start, start + 5)) * DIM**-0.5
    got = f64(q).unflatten(1, (HEADS, DIM))
    assert (got - want).abs().max() < 60 * EPS * want.abs().max()


def test_window_entries_are_what_the_official_cache_holds(ops):
    attn, x = node(), values(1, 40, D) * np.exp2(np.arange(40, dtype=np.float32)[:, None] - 20)
    x[7] = 0
    fresh = ops.window_entries(attn, x, ops.rotations(FREQS, 9, 40))
    kv = turned(rms(f64(x) @ f64(attn.wkv).T, f64(attn.kv_norm)), range(9, 49))
    almost_all_equal(unpacked(fresh), stored(kv), 0.13)


@pytest.mark.parametrize("ratio", [4, 128])
def test_compressor_entries_for_any_chunking(ops, ratio):
    attn, n = node(ratio), 300
    x = values(1, n, D)
    kv, gate = f64(x) @ f64(attn.compressor.wkv).T, f64(x) @ f64(attn.compressor.wgate).T
    gate = gate + f64(attn.compressor.ape)[torch.arange(n) % ratio]
    blocks = n // ratio
    kv, gate = (t[: blocks * ratio].unflatten(0, (blocks, ratio)) for t in (kv, gate))
    if ratio == 4:
        none = torch.full_like(gate[:1, :, :DIM], -torch.inf)
        gate = torch.cat((torch.cat((none, gate[:-1, :, :DIM])), gate[..., DIM:]), 1)
        kv = torch.cat((torch.cat((torch.zeros_like(none), kv[:-1, :, :DIM])), kv[..., DIM:]), 1)
    pooled = rms((gate.softmax(1) * kv).sum(1), f64(attn.compressor.norm))
    want = stored(turned(pooled, range(0, blocks * ratio, ratio)))
    held = []
    for cuts in ((n,), (1, 130, 131, 259, n), tuple(range(1, n + 1))):
        layer, start = packed_layer(attn), 0
        for stop in cuts:
            ops.compress(attn.bound.main, x[start:stop], start, layer.main)
            start = stop
        held.append(layer.main.rows["entries"].data[:blocks].copy())
    almost_all_equal(unpacked(held[0]), want, 0.13)
    assert np.array_equal(held[0], held[1]) and np.array_equal(held[0], held[2])


def test_router_chooses_by_biased_score_and_weighs_without_it(ops):
    gate, bias = matrix(1, 40, D), values(2, 40)
    x = values(3, 9, D, spread=20.0)
    table = np.random.default_rng(4).integers(0, 40, (50, 3))
    scores = torch.nn.functional.softplus(f64(x) @ f64(gate).T).sqrt()
    tokens = np.arange(9, dtype=np.int64) * 5
    for hashed in (False, True):
        expert = Expert(**dict.fromkeys(("w1", "w3", "w2"), PackedWeight.of("f32", values(1, 32, 32))))
        ffn = Mixture(
            gate=gate, gate_bias=None if hashed else bias, tid2eid=table if hashed else None, experts=[expert],
            shared=expert, top_k=3, scale=1.5, limit=10.0,
        )  # fmt: skip
        ids, weights, by = ops.route(BoundMixture(ffn), x, tokens)
        assert (f64(by) - scores - (0 if hashed else f64(bias))).abs().max() < 60 * EPS
        want = torch.from_numpy(table[tokens]) if hashed else (scores + f64(bias)).topk(3).indices
        assert torch.equal(torch.from_numpy(ids), want)
        chosen = scores.gather(1, want)
        assert (f64(weights) - 1.5 * chosen / chosen.sum(1, keepdim=True)).abs().max() < 60 * EPS


def test_every_tier_gives_the_scalar_bits(ops):
    attn = node(4)
    x, q = values(1, 90, D), values(2, 90, HEADS * DIM)

    def compute():
        layer = packed_layer(attn)
        ops.compress(attn.bound.main, x, 0, layer.main)
        ops.compress(attn.bound.keys, x, 0, layer.index)
        turns = ops.rotations(FREQS, 0, 90)
        queries, qr = ops.queries(attn, x, turns)
        chosen = ops.select(attn, x, qr, turns, 0, layer.index)
        out, _ = run_attention(ops, attn, layer, x, q, chosen, (90,))
        done = ops.attention_output(attn, out)
        return (
            queries,
            layer.main.rows["entries"].data[:22].copy(),
            layer.index.rows["entries"].data[:22].copy(),
            chosen,
            out,
            done,
        )

    assert on_scalar(ops, compute)


def test_arguments_out_of_range_are_refused(ops):
    attn, x = node(), values(1, 2, D)
    with pytest.raises(ValueError, match="out of range"):
        ops.embed([-1], matrix(1, 4, 32), 4)
    with pytest.raises(ValueError, match="out of range"):
        ops.embed([4], matrix(1, 4, 32), 4)
    attn.bound.attention.head_dim = 2048
    with pytest.raises(ValueError, match="out of range"):
        ops.window_entries(attn, x, ops.rotations(FREQS, 0, 2))
