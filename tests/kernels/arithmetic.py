"""The arithmetic of v4k.h stated in numpy, one fp32 operation at a time: what every tier's bits are compared with."""

import numpy as np

F = np.float32


def fma(a, b, c):
    """a * b + c in fp32, rounded once: the product is exact in float64; the sum is rounded to odd there, so that the
    rounding to fp32 is that of the exact sum."""
    with np.errstate(all="ignore"):
        product, c = np.asarray(a, F).astype(np.float64) * np.asarray(b, F), np.asarray(c, F).astype(np.float64)
        total = np.atleast_1d(product + c)
        part = total - product
        error = (product - (total - part)) + (c - part)
        inexact = (error != 0) & np.isfinite(total) & (total.view(np.int64) & 1 == 0)
        away = np.where((error > 0) == (total > 0), 1, -1)
        rounded = (total.view(np.int64) + np.where(inexact, away, 0)).view(np.float64).astype(F)
    return rounded.reshape(np.shape(product + c))


def lanes(n_lanes, a, b):
    """lanes(L) of products over the last axis."""
    a, b = np.broadcast_arrays(np.asarray(a, F), np.asarray(b, F))
    acc = np.zeros((*a.shape[:-1], n_lanes), F)
    for at in range(0, a.shape[-1], n_lanes):
        width = min(n_lanes, a.shape[-1] - at)
        acc[..., :width] = fma(a[..., at : at + width], b[..., at : at + width], acc[..., :width])
    while acc.shape[-1] > 1:
        half = acc.shape[-1] // 2
        acc = acc[..., :half] + acc[..., half:]
    return acc[..., 0]


def tree(terms):
    """tree over the first axis; 0 of none."""
    if not len(terms):
        return np.zeros(np.shape(terms)[1:], F)
    while len(terms) > 1:
        pairs = terms[0 : len(terms) // 2 * 2 : 2] + terms[1::2]
        terms = np.concatenate((pairs, terms[-1:])) if len(terms) % 2 else pairs
    return terms[0]


def exp(x):
    x = np.where(np.isnan(x), x, np.clip(x, F(-87), F(88))).astype(F)
    n = (x * F(1.44269504) + F(12582912)) - F(12582912)
    r = fma(n, F(2.12194440e-4), fma(n, F(-0.693359375), x))
    p = np.full_like(x, F(1) / F(5040))
    for c in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        p = fma(p, r, F(c))
    return p * np.ldexp(F(1), np.nan_to_num(n).astype(np.int32)).astype(F)


def log1p(t):
    s = t / (F(2) + t)
    z = s * s
    p = np.full_like(t, F(0.2429026))
    for c in (0.21430278, 0.28616676, 0.39998883, 0.66666675):
        p = fma(p, z, F(c))
    return fma(-s, t - z * p, t)


def sqrt_softplus(x):
    above = np.sqrt(np.maximum(x, F(0)) + log1p(exp(-np.abs(x))))
    return np.where(x < -20, exp(x * F(0.5)), above)


def norm(x, weight, eps):
    """Rows of x (n, d) normed."""
    return x * (F(1) / np.sqrt(lanes(64, x, x) / F(x.shape[-1]) + F(eps)))[:, None] * weight


def sinkhorn(c, iters, eps):
    """comb of logits c (S, S): [j, k]."""
    c = exp(c - c.max(1, keepdims=True))
    c = c / tree(c.T)[:, None] + eps
    for i in range(iters):
        if i:
            c = c / (tree(c.T) + eps)[:, None]
        c = c / (tree(c) + eps)
    return c
