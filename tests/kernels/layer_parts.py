"""One layer's parts for tests: random weights described to the library, and the same mathematics in float64.

Weights are fp32, so that nothing but the op itself rounds.
"""

import numpy as np
import torch
from v4kernels import native
from v4kernels.cpu import PackedWeight
from v4kernels.cpu.bound import BoundAttention
from v4kernels.cpu.memory import Memory
from v4kernels.cpu.state import PackedLayer
from v4kernels.reference.quant import fake_fp8
from v4kernels.tree import Attention, Compressor, Indexer

EPS = 2.0**-24
D, S, HEADS, DIM, ROPE, RANK, WINDOW = 96, 4, 6, 192, 64, 64, 16
FREQS = (10000.0 ** -(np.arange(0, ROPE, 2) / ROPE)).astype(np.float32)


def packed_layer(attn):
    return PackedLayer(attn, 1 << 17, Memory())


def values(seed, *shape, spread=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * spread).astype(np.float32)


def matrix(seed, rows, cols):
    return PackedWeight.of("f32", values(seed, rows, cols, spread=cols**-0.5))


def f64(x):
    """An array, or a weight, as a float64 tensor."""
    array = x.owners[0] if isinstance(x, PackedWeight) else x
    return torch.from_numpy(np.asarray(array)).double()


def on_scalar(ops, compute):
    """The same by the scalar tier."""
    before, got = native.isa(), compute()
    native.set_isa("scalar")
    want = compute()
    native.set_isa(before)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(got, want))


class Node:
    """One layer's attention: its node of the tree, and `bound`, which describes it to the library."""

    def __init__(self, attn: Attention):
        self.attn, self.bound = attn, BoundAttention(attn, 0)

    def __getattr__(self, name):
        return getattr(self.attn, name)


def node(ratio=0, top_k=8, index_heads=5) -> Node:
    """Random weights of one layer's attention."""

    def compressor(seed, dims, is_index):
        width = 2 * dims if ratio == 4 else dims
        return Compressor(
            ape=values(seed, ratio, width), wkv=matrix(seed + 1, width, D), wgate=matrix(seed + 2, width, D),
            norm=1 + values(seed + 3, dims, spread=0.1), freqs=FREQS, is_index=is_index, ratio=ratio, head_dim=dims,
            rope_dims=ROPE, eps=1e-6,
        )  # fmt: skip

    indexer = None
    if ratio == 4:
        indexer = Indexer(
            wq_b=matrix(20, index_heads * 128, RANK), weights_proj=matrix(21, index_heads, D),
            compressor=compressor(30, 128, True), heads=index_heads, head_dim=128, rope_dims=ROPE, top_k=top_k,
        )  # fmt: skip
    attn = Attention(
        sink=values(1, HEADS), wq_a=matrix(2, RANK, D), q_norm=1 + values(3, RANK, spread=0.1),
        wq_b=matrix(4, HEADS * DIM, RANK), wkv=matrix(5, DIM, D), kv_norm=1 + values(6, DIM, spread=0.1),
        wo_a=matrix(7, 2 * 32, HEADS // 2 * DIM), wo_b=matrix(8, D, 64), freqs=FREQS, ratio=ratio, indexer=indexer,
        compressor=compressor(40, DIM, False) if ratio else None, heads=HEADS, head_dim=DIM, rope_dims=ROPE, groups=2,
        window=WINDOW, eps=1e-6,
    )  # fmt: skip
    return Node(attn)


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


def run_attention(ops, attn, layer, x, q, chosen, cuts, main=None):
    """Outputs (n, H * d) and the window latents of all tokens."""
    layer.main, start, out, latents = main or layer.main, 0, [], []
    for stop in cuts:
        turns = ops.rotations(FREQS, start, stop - start)
        fresh = ops.window_entries(attn, x[start:stop], turns)
        latents.append(unpacked(fresh))
        selected = None if chosen is None else chosen[start:stop]
        out.append(ops.attend(attn, q[start:stop], turns, start, layer, fresh, selected))
        start = stop
    return np.concatenate(out), torch.cat(latents)
