"""Router: v4k_route behind the products with the gate, which are a linear layer's.

Scores are sqrt(softplus(product)); experts of a token are the TOP_K with the highest score + bias, the lower id on a
tie, or what a table says of the token. Weights are their scores over the sum of these, in order, times scale.
"""

import triton
import triton.language as tl

from v4kernels.triton.sums import sqrt_softplus_lanes
from v4kernels.triton.types import f32p, i64p


@triton.jit
def best(value, e, left, EXPERTS: tl.constexpr):
    """The id with the highest value fp32 among `left`, the lowest of equals. NaN is below all others, but where the
    first of `left` is one: nothing is above it."""
    first = tl.min(tl.where(left, e, EXPERTS), axis=0)
    number = left & (value == value)
    top = tl.max(tl.where(number, value, float("-inf")), axis=0)
    found = tl.min(tl.where(number & (value == top), e, EXPERTS), axis=0)
    starts = tl.max((number & (e == first)).to(tl.int32), axis=0)
    return tl.where(starts == 1, found, first)


@triton.jit
def route(
    products: f32p,  # [n, EXPERTS]: of x with the gate
    bias: f32p,  # [EXPERTS]; not read where a table says
    table: i64p,  # [vocabulary, TOP_K]; read where it says
    tokens: i64p,  # [n]; likewise
    ids: i64p,  # out [n, TOP_K]
    weights: f32p,  # out [n, TOP_K]
    scores: f32p,  # out [n, EXPERTS]: what the choice goes by, the bias included
    scale: tl.float32,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    BY_TABLE: tl.constexpr,
    BLOCK: tl.constexpr,  # a power of two, at least EXPERTS and TOP_K
):
    """Grid: (n,)."""
    t = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BLOCK)
    left = e < EXPERTS
    score = sqrt_softplus_lanes(tl.load(products + t * EXPERTS + e, left, 0.0))
    value = score
    if not BY_TABLE:
        value += tl.load(bias + e, left, 0.0)
    tl.store(scores + t * EXPERTS + e, value, left)
    chosen = tl.zeros((BLOCK,), tl.int64)
    weight = tl.zeros((BLOCK,), tl.float32)
    total = 0.0
    for j in range(TOP_K):
        if BY_TABLE:
            id = tl.load(table + tl.load(tokens + t) * TOP_K + j)
        else:
            id = best(value, e, left, EXPERTS).to(tl.int64)
            left = left & (e != id)
        own = tl.sum(tl.where((e == id) & (e < EXPERTS), score, 0.0), axis=0)  # 0 of an expert that is not known
        total += own
        chosen = tl.where(e == j, id, chosen)
        weight = tl.where(e == j, own, weight)
    tl.store(ids + t * TOP_K + e, chosen, e < TOP_K)
    tl.store(weights + t * TOP_K + e, tl.div_rn(weight, total) * scale, e < TOP_K)
