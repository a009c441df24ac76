"""The formats q3 and q2 (v4kernels/formats.py) both ways, in parts, so that who rounds a matrix in his own way (input
by input, with what was lost before carried on) can: `fit` chooses scales, `nearest` codes, `pack` and `pack_scales`
store. The kernel library does all of it at once, to the same bytes on every machine: v4k.h says in which order; what is
here is the same in torch, for where there is no library.

A run is 16 inputs that share a multiplier. A weight is step * level, step = row scale * multiplier of its run.
"""

from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor
from v4kernels import native
from v4kernels.formats import LEVELS, MULTIPLIERS

RUN = 16
SHRINK = (0.55, 0.7, 0.85, 1.0)  # a row's scale, of that which reaches its largest weight
LEAST_PEAK = 2.0**-100  # rows of smaller weights are zeros
N_SIZES = len(MULTIPLIERS) // 2  # of multipliers, before those with the other sign
_MULTIPLIERS = torch.tensor(MULTIPLIERS, dtype=torch.float32)
_SIZES = _MULTIPLIERS[:N_SIZES].contiguous()
_FURTHEST = max(abs(level) for levels in LEVELS.values() for level in levels)
_REACH = max(MULTIPLIERS) * _FURTHEST
_LEVELS = {form: torch.tensor(levels, dtype=torch.float32) for form, levels in LEVELS.items()}
_MIDDLES = {form: [(a + b) / 2 for a, b in pairwise(levels)] for form, levels in LEVELS.items()}


@dataclass(frozen=True)
class Scales:
    """Scales of some rows: `row` (out, 1) fp32, values that bf16 has, 0 for rows of zeros only, and `number` (out,
    in/16) int64, which multiplier each run has."""

    row: Tensor
    number: Tensor

    def steps(self) -> Tensor:
        """(out, in/16) fp32: what a level of each run is multiplied with."""
        return self.row * _MULTIPLIERS[self.number]


def fit(w: Tensor, form: str, importance: Tensor | None = None) -> Scales:
    """Scales for w (out, in) fp32 that make little squared error after rounding to the nearest level; `importance`
    (in,) or (out, in): what a squared error counts there, finite and above zero. Of a row the scale is the best of
    SHRINK, judged by the likeliest multipliers of each run; then every run has the best multiplier of all. Infinite for
    rows that are not finite, 0 for those of weights below LEAST_PEAK."""
    if native.available():
        return unpack_scales(native.encode_lowbit(w, form, importance, codes=False)[1])
    finite = w.isfinite().all(-1, keepdim=True)
    w = torch.where(finite, w, 0.0)
    row = _rows(w, form, importance)
    return Scales(torch.where(finite, row, torch.inf), numbers(w, row, form, importance))


def numbers(w: Tensor, row: Tensor, form: str, importance: Tensor | None = None) -> Tensor:
    """The multipliers (out, in/16) of least squared error for runs of w (out, in), by row scales (out, 1);
    `importance` as in `fit`."""
    unit = unit_of(row)
    runs, row, counts = _runs(w / unit), row / unit, _counts(w, importance)
    number = best = None
    for i in range(len(MULTIPLIERS)):
        tried = torch.full(runs.shape[:-1], i)
        error = _error(runs, row * MULTIPLIERS[i], form, counts)
        number, best = (tried, error) if best is None else _better(number, best, tried, error)
    return number


def _rows(w: Tensor, form: str, importance: Tensor | None) -> Tensor:
    """Row scales (out, 1) for w (out, in)."""
    top = w.abs().amax(-1, keepdim=True)
    top = torch.where(top < LEAST_PEAK, 0.0, top) / _REACH
    unit = unit_of(top)
    runs, counts = _runs(w / unit), _counts(w, importance)
    peak = runs.gather(-1, runs.abs().argmax(-1, keepdim=True))
    sign = torch.where(peak.squeeze(-1) > 0, N_SIZES, 0)  # levels reach further below zero
    best_row = best = None
    for shrink in SHRINK:
        row = (top * shrink).bfloat16().float()
        middle = (peak.abs() > (row / unit)[..., None] * (_SIZES * _FURTHEST)).sum(-1)
        error = None
        for size in (middle - 1, middle, middle + 1):
            step = row / unit * _MULTIPLIERS[size.clamp(0, N_SIZES - 1) + sign]
            tried = _error(runs, step, form, counts)
            error = tried if error is None else torch.minimum(tried, error)
        total = _in_order(error)[:, None]
        best_row, best = (row, total) if best is None else _better(best_row, best, row, total)
    return best_row


def _runs(w: Tensor) -> Tensor:
    return w.unflatten(-1, (-1, RUN))


def _counts(w: Tensor, importance: Tensor | None) -> Tensor | None:
    return None if importance is None else _runs(importance.to(w).expand_as(w))


def unit_of(row: Tensor) -> Tensor:
    """The power of two in each scale, by which rows are divided so that their squares are numbers; 1 for 0."""
    return torch.where(row == 0, 1.0, (row.view(torch.int32) & 0x7F800000).view(torch.float32))


def _better(old: Tensor, old_error: Tensor, new: Tensor, new_error: Tensor) -> tuple[Tensor, Tensor]:
    """Of two choices those of less error, and their errors."""
    return torch.where(new_error < old_error, new, old), torch.minimum(new_error, old_error)


def _in_order(x: Tensor) -> Tensor:
    """Sums over the last axis, one term after the other: torch's own differ between machines."""
    return reduce(torch.add, x.unbind(-1))


def _error(runs: Tensor, step: Tensor, form: str, counts: Tensor | None) -> Tensor:
    """Squared errors (out, in/16) of runs rounded to levels of a step each."""
    step = step[..., None]
    error = (runs - values(nearest(runs, step, form), step, form)).square_()
    return _in_order(error if counts is None else error.mul_(counts))


def nearest(w: Tensor, steps: Tensor, form: str) -> Tensor:
    """Codes (out, in) uint8 of w (out, in) by steps that broadcast with it, of two levels as near the lower; where the
    step is 0 some code."""
    w, size = torch.where(steps < 0, -w, w), steps.abs()
    codes = torch.zeros(w.shape, dtype=torch.uint8)
    for middle in _MIDDLES[form]:
        codes += w > size * middle  # exact, as steps have few bits
    return codes


def values(codes: Tensor, steps: Tensor, form: str) -> Tensor:
    """What codes (out, in) stand for, in fp32, by steps that broadcast with them."""
    return _LEVELS[form][codes.int()] * steps


def pack(codes: Tensor, form: str) -> Tensor:
    """Codes (out, in) uint8 as they are stored (out, in * bits / 8)."""
    c = codes.unflatten(-1, (-1, 4))
    c0, c1, c2, c3 = c.unbind(-1)  # (out, in/4)
    if form == "q2":
        return c0 | (c1 << 2) | (c2 << 4) | (c3 << 6)
    n0 = c0 | ((c3 & 4) << 1)
    n1 = (c1 & 3) | ((c1 & 4) << 1) | ((c3 & 2) << 1)
    n2 = ((c2 & 1) | ((c2 & 6) << 1) | ((c3 & 1) << 1)).unflatten(-1, (-1, 2, 4))
    return torch.cat((n0 | (n1 << 4), (n2[..., 0, :] | (n2[..., 1, :] << 4)).flatten(-2)), -1)


def unpack(packed: Tensor, form: str) -> Tensor:
    """What `pack` took."""
    if form == "q2":
        return torch.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], -1).flatten(-2)
    first, second = packed.split((packed.shape[-1] * 2 // 3, packed.shape[-1] // 3), -1)
    n0, n1 = first & 15, first >> 4
    second = second.unflatten(-1, (-1, 4))
    n2 = torch.stack((second & 15, second >> 4), -2).flatten(-3)
    c3 = (n0 & 8) >> 1 | (n1 & 4) >> 1 | (n2 & 2) >> 1
    return torch.stack((n0 & 7, n1 & 3 | (n1 & 8) >> 1, n2 & 1 | (n2 & 12) >> 1, c3), -1).flatten(-2)


def pack_scales(scales: Scales) -> Tensor:
    """Scales as they are stored: (out, 2 + in/32) uint8."""
    low, high = scales.number.to(torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.cat((scales.row.bfloat16().view(torch.uint8), low | (high << 4)), -1)


def unpack_scales(packed: Tensor) -> Scales:
    """What `pack_scales` took."""
    row = packed[:, :2].flatten().clone().view(torch.bfloat16).float()[:, None]
    pairs = packed[:, 2:].long()
    return Scales(row, torch.stack((pairs & 15, pairs >> 4), -1).flatten(-2))


def encode(w: Tensor, form: str, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """fp32 (out, in) -> codes and scales as stored, each weight rounded to the nearest; `importance` as in `fit`."""
    if native.available():
        return native.encode_lowbit(w, form, importance)
    scales = fit(w, form, importance)
    steps = scales.steps().repeat_interleave(RUN, -1)
    return pack(nearest(w, steps, form), form), pack_scales(scales)


def decode(packed: Tensor, scale: Tensor, form: str) -> Tensor:
    """What `encode` wrote, in fp32."""
    return values(unpack(packed, form), unpack_scales(scale).steps().repeat_interleave(RUN, -1), form)
