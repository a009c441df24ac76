"""The ops of a layer beyond linear ones, on every tier: against float64, bit for bit against the scalar tier, and for
any chunking. Weights are fp32 here, so that nothing but the op itself rounds."""

from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from v4kernels import cpu, native
from v4kernels.cpu import CpuOps, PackedWeight
from v4kernels.primitives import sinkhorn
from v4kernels.quant import fake_fp4, fake_fp8, hadamard

from v4cli.cache.packed import PackedLayer

EPS = 2.0**-24
NAMES = count()
D, S, HEADS, DIM, ROPE, RANK, WINDOW = 96, 4, 6, 192, 64, 64, 16
FREQS = (10000.0 ** -(np.arange(0, ROPE, 2) / ROPE)).astype(np.float32)


@pytest.fixture(params=["scalar", "avx2", "avx512", "neon"])
def ops(request):
    if not native.available():
        pytest.skip(native.reason())
    if request.param not in native.isa_tiers():
        pytest.skip(f"this machine has no {request.param}")
    native.set_isa(request.param)
    yield CpuOps()
    native.set_isa(native.isa_tiers()[-1])


def values(seed, *shape, spread=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * spread).astype(np.float32)


def matrix(seed, rows, cols):
    return PackedWeight.of("f32", values(seed, rows, cols, spread=cols**-0.5))


def f64(x):
    """An array, or a weight, as a float64 tensor."""
    array = x.owners[0] if isinstance(x, PackedWeight) else x
    return torch.from_numpy(np.asarray(array)).double()


def buffer(ops, x):
    """x (N, width) as an op takes it."""
    held = ops._take(f"in {next(NAMES)}", *x.shape, x.dtype)
    held.array()[:] = x
    return held


def on_scalar(ops, compute):
    """The same by the scalar tier."""
    before, got = native.isa(), compute()
    native.set_isa("scalar")
    want = compute()
    native.set_isa(before)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(got, want))


def tree(ratio=0, top_k=8):
    """Weights of one layer's attention, described to the library."""

    def compressor(seed, dims, is_index):
        width = 2 * dims if ratio == 4 else dims
        return SimpleNamespace(
            ape=values(seed, ratio, width), wkv=matrix(seed + 1, width, D), wgate=matrix(seed + 2, width, D),
            norm=1 + values(seed + 3, dims, spread=0.1), freqs=FREQS, is_index=is_index, ratio=ratio, head_dim=dims,
            rope_dims=ROPE, eps=1e-6,
        )  # fmt: skip

    indexer = None
    if ratio == 4:
        indexer = SimpleNamespace(
            wq_b=matrix(20, 5 * 128, RANK), weights_proj=matrix(21, 5, D), compressor=compressor(30, 128, True),
            heads=5, head_dim=128, rope_dims=ROPE, top_k=top_k,
        )  # fmt: skip
    attn = SimpleNamespace(
        sink=values(1, HEADS), wq_a=matrix(2, RANK, D), q_norm=1 + values(3, RANK, spread=0.1),
        wq_b=matrix(4, HEADS * DIM, RANK), wkv=matrix(5, DIM, D), kv_norm=1 + values(6, DIM, spread=0.1),
        wo_a=matrix(7, 2 * 32, HEADS // 2 * DIM), wo_b=matrix(8, D, 64), ratio=ratio, indexer=indexer,
        compressor=compressor(40, DIM, False) if ratio else None, heads=HEADS, head_dim=DIM, rope_dims=ROPE, groups=2,
        window=WINDOW, eps=1e-6,
    )  # fmt: skip
    hyper = SimpleNamespace(
        fn=values(9, S, S * D), base=values(10, S), scale=values(11, 1), norm=values(12, D), streams=S, iters=20,
        norm_eps=1e-6, eps=1e-6,
    )  # fmt: skip
    CpuOps().prepare(SimpleNamespace(hc_head=hyper, layers=[]))
    cpu._describe_attention(attn)
    return attn


def rms(x, weight=1.0):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


def turned(x, positions, inverse=False):
    """The last ROPE of x (N, ..., d) turned, in float64 but by the fp32 angles that the model is defined with."""
    angles = torch.outer(torch.tensor(positions, dtype=torch.float32), torch.from_numpy(FREQS)).double()
    angles = (-angles if inverse else angles).reshape(len(x), *[1] * (x.dim() - 2), -1)
    pairs = torch.view_as_complex(x[..., -ROPE:].unflatten(-1, (-1, 2)).contiguous())
    pairs = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    return torch.cat((x[..., :-ROPE], pairs), -1)


def unpacked(entries):
    """KV entries (n, bytes) as float64 (n, DIM)."""
    plain = DIM - ROPE
    raw = torch.from_numpy(entries.copy())
    codes = raw[:, :plain].view(torch.float8_e4m3fn).double().unflatten(1, (-1, 64))
    scales = 2.0 ** (raw[:, plain + 2 * ROPE :][:, : plain // 64].double() - 127)
    rope = raw[:, plain : plain + 2 * ROPE].contiguous().view(torch.bfloat16).double()
    return torch.cat(((codes * scales[..., None]).flatten(1), rope), 1)


def stored(kv):
    """What an entry can hold of float64 kv (n, DIM)."""
    plain = kv[:, :-ROPE].float()
    return torch.cat((fake_fp8(plain, 64).double(), kv[:, -ROPE:].float().bfloat16().double()), 1)


def almost_all_equal(got, want, step):
    """A last bit before rounding may move a code to its neighbour, but hardly ever does."""
    apart = got != want
    assert apart.double().mean() < 2e-3
    assert ((got - want).abs() <= step * want.abs().clamp_min(1e-3)).all()


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
    hyper = SimpleNamespace(
        fn=values(1, S * S + 2 * S, S * D, spread=spread * (S * D) ** -0.5), base=values(2, S * S + 2 * S),
        scale=values(3, 3), norm=values(4, D), streams=S, iters=20, norm_eps=1e-6, eps=1e-6,
    )  # fmt: skip
    cpu._describe_hyper(hyper)
    streams, out = values(5, 3, S * D), values(6, 3, D)
    x, mix = ops.sublayer_input(buffer(ops, streams), hyper)
    x = x.array().copy()
    mixed = ops._buffers["mix"].array().copy()
    flat = f64(streams)
    m = flat @ f64(hyper.fn).T * torch.rsqrt(flat.square().mean(-1, keepdim=True) + 1e-6)
    scale, base = f64(hyper.scale), f64(hyper.base)
    pre = torch.sigmoid(m[:, :S] * scale[0] + base[:S]) + 1e-6
    post = 2 * torch.sigmoid(m[:, S : 2 * S] * scale[1] + base[S : 2 * S])
    comb = sinkhorn((m[:, 2 * S :] * scale[2] + base[2 * S :]).unflatten(1, (S, S)), 20, 1e-6)
    want = rms((pre[..., None] * flat.unflatten(1, (S, D))).sum(1), f64(hyper.norm))
    noise = 400 * EPS * max(1, spread)  # 40 normalisations of sums of four, of numbers that carry the dot's error
    assert (f64(x) - want).abs().max() < noise * want.abs().max()
    assert (f64(mixed) - torch.cat((post, comb.flatten(1)), 1)).abs().max() < noise
    got = ops.sublayer_output(buffer(ops, out), buffer(ops, streams), mix).array()
    want = post[..., None] * f64(out)[:, None] + torch.einsum("njk,njd->nkd", comb, flat.unflatten(1, (S, D)))
    assert (f64(got).unflatten(1, (S, D)) - want).abs().max() < 2 * noise * want.abs().max()
    again = buffer(ops, streams[1:2])
    assert np.array_equal(ops.sublayer_input(again, hyper)[0].array()[0], x[1])


def test_queries_are_normed_and_turned(ops):
    attn, x, start = tree(), values(1, 5, D), 1000
    q, qr = ops.queries(attn, buffer(ops, x), ops.rotations(FREQS, start, 5))
    low = rms(f64(x) @ f64(attn.wq_a).T, f64(attn.q_norm))
    assert (f64(qr.array()) - low).abs().max() < 40 * EPS * low.abs().max()
    want = turned(rms((low @ f64(attn.wq_b).T).unflatten(1, (HEADS, DIM))), range(start, start + 5)) * DIM**-0.5
    got = f64(q.array()).unflatten(1, (HEADS, DIM))
    assert (got - want).abs().max() < 60 * EPS * want.abs().max()


def test_window_entries_are_what_the_official_cache_holds(ops):
    attn, x = tree(), values(1, 40, D) * np.exp2(np.arange(40, dtype=np.float32)[:, None] - 20)
    x[7] = 0
    ops.append_window(attn, buffer(ops, x), ops.rotations(FREQS, 9, 40), None)
    kv = turned(rms(f64(x) @ f64(attn.wkv).T, f64(attn.kv_norm)), range(9, 49))
    almost_all_equal(unpacked(ops._buffers["fresh"].array()), stored(kv), 0.13)


@pytest.mark.parametrize("ratio", [4, 128])
def test_compressor_entries_for_any_chunking(ops, ratio):
    attn, n = tree(ratio), 300
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
        layer, start = PackedLayer(attn), 0
        for stop in cuts:
            ops.append_compressed(attn.compressor, buffer(ops, x[start:stop]), start, layer.main)
            start = stop
        held.append(layer.main.rows[0][:blocks].copy())
    almost_all_equal(unpacked(held[0]), want, 0.13)
    assert np.array_equal(held[0], held[1]) and np.array_equal(held[0], held[2])


def index_scores(ix, q, w, keys, n):
    """Scores of the first n entries for queries q (heads, dims) and weights w (heads,)."""
    out = np.empty(n, np.float32)
    pointers = q.ctypes.data, w.ctypes.data, keys.entries, keys.scales, n, out.ctypes.data
    native.checked(native.library().v4k_index_scores(ix.at, *pointers))
    return out


def chosen(ops, ix, layer, x, qr, start):
    turns = ops.rotations(FREQS, start, len(x))
    return ops.select(ix, buffer(ops, x), buffer(ops, qr), turns, start, layer.index).array().copy()


def test_index_scores_are_exact_and_the_best_are_chosen(ops):
    attn, n = tree(4), 4 * 700
    ix, layer, x, qr = attn.indexer, PackedLayer(attn), values(1, n, D), values(2, n, RANK)
    ops.append_compressed(ix.compressor, buffer(ops, x), 0, layer.index)
    codes, scales = (rows[: n // 4].copy() for rows in layer.index.rows)
    e2m1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    magnitudes = torch.stack((torch.from_numpy(codes & 7), torch.from_numpy(codes >> 4 & 7)), -1).flatten(1).long()
    negative = torch.stack((torch.from_numpy(codes & 8), torch.from_numpy(codes >> 4 & 8)), -1).flatten(1) > 0
    k = torch.where(negative, -e2m1[magnitudes], e2m1[magnitudes]).double().unflatten(1, (4, 32))
    k = (k * 2.0 ** (torch.from_numpy(scales).double() - 127)[..., None]).flatten(1)
    q, w = values(3, 5, 128), values(4, 5)
    dots = fake_fp4(hadamard(torch.from_numpy(q))).double() @ k.T
    want = (torch.from_numpy(w).double()[:, None] * dots.relu()).sum(0)
    got = index_scores(ix, q, w, layer.index.native, n // 4)
    assert (f64(got) - want).abs().max() <= 8 * EPS * (np.abs(w)[:, None] * dots.relu().numpy()).sum(0).max()
    for at, row in enumerate(chosen(ops, ix, layer, x[-6:], qr[-6:], n - 6), n - 6):
        assert list(row) == sorted(set(row)) and 0 <= row[0] and row[-1] < (at + 1) // 4
        assert np.array_equal(chosen(ops, ix, layer, x[at : at + 1], qr[at : at + 1], at)[0], row)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_best_of_many_keys_are_those_of_the_highest_scores(ops, threads):
    """Against a stable sort of all scores, for one token and many; thousands of keys are the same."""
    attn, n, before = tree(4, top_k=100), 4 * 20_000, native.threads()
    ix, layer, x, qr = attn.indexer, PackedLayer(attn), values(1, 40, D), values(2, 40, RANK)
    x[7] = -f64(ix.weights_proj).sum(0).numpy()  # all its weights are below zero, its best scores zero
    layer.index.reserve(n)
    codes, scales = layer.index.rows
    codes[:] = np.random.default_rng(3).integers(0, 256, codes.shape, np.uint8)
    scales[:] = np.random.default_rng(4).integers(124, 130, scales.shape, np.uint8)
    codes[5000:9000], scales[5000:9000] = codes[5000], scales[5000]
    first = n - 40
    q = native.linear(torch.from_numpy(qr), ix.wq_b.matrix).unflatten(1, (ix.heads, ix.head_dim)).double()
    q = turned(q, range(first, n)).float().numpy()
    w = native.linear(torch.from_numpy(x), ix.weights_proj.matrix).numpy() * np.float32((128 * ix.heads) ** -0.5)
    assert not (w[7] > 0).any() and (w[0] > 0).any()
    native.set_threads(threads)
    whole = chosen(ops, ix, layer, x, qr, first)
    for i in (0, 7, 39):
        scores = index_scores(ix, q[i], w[i], layer.index.native, (first + i + 1) // 4)
        want = np.sort(np.argsort(-scores, kind="stable")[: ix.top_k])
        assert np.array_equal(whole[i], want)
        assert np.array_equal(chosen(ops, ix, layer, x[i : i + 1], qr[i : i + 1], first + i)[0], want)
    native.set_threads(before)


def test_ties_go_to_the_lower_entry_and_few_entries_are_all_chosen(ops):
    attn = tree(4)
    ix, layer = attn.indexer, PackedLayer(attn)
    x = np.tile(values(1, 4, D), (30, 1))  # from the second block on all keys differ by rotation only
    ops.append_compressed(ix.compressor, buffer(ops, x), 0, layer.index)
    layer.index.rows[0][:], layer.index.rows[1][:] = layer.index.rows[0][3], layer.index.rows[1][3]
    turns = ops.rotations(FREQS, 20, 100)
    rows = ops.select(ix, buffer(ops, x[20:]), buffer(ops, values(2, 100, RANK)), turns, 20, layer.index).array()
    assert list(rows[0]) == [0, 1, 2, 3, 4, -1, -1, -1]
    assert (rows[30:] == np.arange(8)).all()


@pytest.mark.parametrize("ratio", [0, 4, 128])
def test_attention_over_window_and_entries(ops, ratio):
    attn, n = tree(ratio), 700
    x, layer = values(1, n, D), PackedLayer(attn)
    if ratio:
        ops.append_compressed(attn.compressor, buffer(ops, x), 0, layer.main)
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
    entries = unpacked(layer.main.rows[0][: n // ratio]) if ratio else None
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
    chunked, _ = run_attention(ops, attn, PackedLayer(attn), x, q, chosen, (1, 2, 17, 40, 300, 301, n), layer.main)
    assert np.array_equal(whole, chunked)


def run_attention(ops, attn, layer, x, q, chosen, cuts, main=None):
    """Outputs (n, H * d) and the window latents of all tokens."""
    layer.main, start, out, latents = main or layer.main, 0, [], []
    for stop in cuts:
        turns = ops.rotations(FREQS, start, stop - start)
        ops.append_window(attn, buffer(ops, x[start:stop]), turns, layer)
        latents.append(unpacked(ops._buffers["fresh"].array()))
        selected = None if chosen is None else buffer(ops, chosen[start:stop])
        out.append(ops.attend(attn, buffer(ops, q[start:stop]), turns, start, layer, selected).array().copy())
        start = stop
    return np.concatenate(out), torch.cat(latents)


def test_attention_survives_extreme_scores_and_sinks(ops):
    attn, x, layer = tree(), values(1, 3, D), PackedLayer(tree())
    attn.sink[:] = [80, -80, 0, 200, -200, 1]
    q = values(2, 3, HEADS * DIM, spread=30.0)
    out, _ = run_attention(ops, attn, layer, x, q, None, (3,))
    assert np.isfinite(out).all()
    q[1, :DIM] = np.nan
    out, _ = run_attention(ops, attn, PackedLayer(attn), x, q, None, (3,))
    assert np.isnan(out[1, :DIM]).all() and np.isfinite(out[0]).all() and np.isfinite(out[1, DIM:]).all()


def test_router_chooses_by_biased_score_and_weighs_without_it(ops):
    gate, bias = matrix(1, 40, D), values(2, 40)
    x = values(3, 9, D, spread=20.0)
    table = np.random.default_rng(4).integers(0, 40, (50, 3))
    scores = torch.nn.functional.softplus(f64(x) @ f64(gate).T).sqrt()
    tokens = np.arange(9, dtype=np.int64) * 5
    for hashed in (False, True):
        expert = SimpleNamespace(**dict.fromkeys(("w1", "w3", "w2"), PackedWeight.of("f32", values(1, 32, 32))))
        ffn = SimpleNamespace(
            gate=gate, gate_bias=None if hashed else bias, tid2eid=table if hashed else None, experts=[expert],
            shared_experts=expert, top_k=3, scale=1.5, limit=10.0,
        )  # fmt: skip
        cpu._describe_ffn(ffn)
        ids, weights = (b.array().copy() for b in ops.route(ffn, buffer(ops, x), ops.tokens(tokens)))
        want = torch.from_numpy(table[tokens]) if hashed else (scores + f64(bias)).topk(3).indices
        assert torch.equal(torch.from_numpy(ids), want)
        chosen = scores.gather(1, want)
        assert (f64(weights) - 1.5 * chosen / chosen.sum(1, keepdim=True)).abs().max() < 60 * EPS


def test_every_tier_gives_the_scalar_bits(ops):
    attn = tree(4)
    x, q = values(1, 90, D), values(2, 90, HEADS * DIM)

    def compute():
        layer = PackedLayer(attn)
        ops.append_compressed(attn.compressor, buffer(ops, x), 0, layer.main)
        ops.append_compressed(attn.indexer.compressor, buffer(ops, x), 0, layer.index)
        turns = ops.rotations(FREQS, 0, 90)
        queries, qr = ops.queries(attn, buffer(ops, x), turns)
        chosen = ops.select(attn.indexer, buffer(ops, x), qr, turns, 0, layer.index).array().copy()
        out, _ = run_attention(ops, attn, layer, x, q, chosen, (90,))
        done = ops.attention_output(attn, buffer(ops, out)).array().copy()
        return (
            queries.array().copy(),
            layer.main.rows[0][:22].copy(),
            layer.index.rows[0][:22].copy(),
            chosen,
            out,
            done,
        )

    assert on_scalar(ops, compute)


def test_arguments_out_of_range_are_refused(ops):
    attn, layer = tree(), PackedLayer(tree())
    x = buffer(ops, values(1, 2, D))
    with pytest.raises(ValueError, match="out of range"):
        ops.embed(ops.tokens([-1]), matrix(1, 4, 32), 4)
    with pytest.raises(ValueError, match="out of range"):
        ops.embed(ops.tokens([4]), matrix(1, 4, 32), 4)
    attn.native.head_dim = 2048
    with pytest.raises(ValueError, match="out of range"):
        ops.append_window(attn, x, ops.rotations(FREQS, 0, 2), layer)
