"""Rounding a matrix with what is known of its inputs: an error made at one input is carried to those that come later,
where inputs that go together make it good (GPTQ; LDLQ is the same).

Second moments of inputs are known as a few directions and a diagonal. So is what can be made good: it takes sums over
directions, not over all inputs before. The kernel library does it, to the same bytes on every machine (v4k.h says in
which order); what is here is the same in torch, for where there is no library.
"""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from v4kernels import native

from v4cli.store import lowbit
from v4cli.store.lowbit import RUN, Scales

DAMPING = 0.01  # of the mean square of inputs: what is known of them is known of a sample


@dataclass(frozen=True, eq=False)
class Inputs:
    """Of a matrix's inputs, fp32: `importance` (in,), what a squared error counts at each where scales are chosen;
    second moments, factor factor^T + diag(rest), `factor` (in, rank), `rest` (in,); and how errors are carried by them:
    `gains` (in, rank) and `within` (in, 16), see v4k_carry_gains."""

    importance: Tensor
    factor: Tensor
    rest: Tensor
    gains: Tensor
    within: Tensor

    @classmethod
    def by(cls, factor: Tensor, squares: Tensor) -> "Inputs":
        """From directions (rank, in), at most 512, and mean squares (in,), above zero."""
        damping = (DAMPING * squares.double().mean()).clamp_min(1e-30)
        rest = (squares.double() - factor.double().square().sum(0)).clamp_min(0) + damping
        importance, rest = (squares + damping).float(), rest.float()
        factor = torch.nn.functional.pad(factor.t(), (0, -len(factor) % 4)).float().contiguous()
        return cls(importance, factor, rest, *(native.carry_gains if native.available() else _gains)(factor, rest))


def encode(w: Tensor, form: str, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """w (out, in) fp32 -> codes and scales as stored, in q3 or q2. Outputs that carrying makes worse are rounded weight
    by weight: weights that have to make much good may be beyond all levels."""
    if native.available():
        known = inputs.factor, inputs.rest, inputs.gains, inputs.within
        return native.carry_lowbit(w, form, inputs.importance, *known)
    scales = lowbit.fit(w, form, inputs.importance)
    unit = lowbit.unit_of(torch.where(scales.row.isfinite(), scales.row, 0.0))
    w, row = w / unit, scales.row / unit
    codes = lowbit.nearest(w, _steps(row, scales.number), form)
    loss = _loss(w, codes, _steps(row, scales.number), form, inputs)
    other_codes, number, other_loss = _carrying(w, row, form, inputs)
    better = (other_loss < loss) & (row > 0) & row.isfinite()
    codes = torch.where(better, other_codes, codes)
    scales = Scales(scales.row, torch.where(better, number, scales.number))
    return lowbit.pack(codes, form), lowbit.pack_scales(scales)


def _steps(row: Tensor, number: Tensor) -> Tensor:
    return Scales(row, number).steps().repeat_interleave(RUN, -1)


def _carrying(w: Tensor, row: Tensor, form: str, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (out, in), input by input, each run's multiplier chosen when its weights are as they will be rounded but
    for what is carried within it; the multipliers (out, in/16), and the loss (out, 1)."""
    sums, loss = torch.zeros(len(w), inputs.factor.shape[1]), torch.zeros(len(w), 1)
    codes, numbers = torch.empty(w.shape, dtype=torch.uint8), []
    for first in range(0, w.shape[1], RUN):
        run = slice(first, first + RUN)
        own, left, errors = w[:, run], w[:, run].clone(), torch.empty(len(w), RUN)
        for r, gains in enumerate(inputs.gains[run].t()):
            left = _fma(gains, sums[:, r : r + 1], left)
        numbers.append(lowbit.numbers(left, row, form, inputs.importance[run]))
        step = Scales(row, numbers[-1]).steps()
        for i in range(RUN):
            at = slice(i, i + 1)
            codes[:, first + i] = lowbit.nearest(left[:, at], step, form)[:, 0]
            errors[:, at] = own[:, at] - lowbit.values(codes[:, first + i, None], step, form)
            left[:, i + 1 :] = _fma(inputs.within[first + i, i + 1 :], errors[:, at], left[:, i + 1 :])
        sums, loss = _onto(sums, loss, errors, inputs, first)
    return codes, torch.cat(numbers, -1), _with_squares(loss, sums)


def _loss(w: Tensor, codes: Tensor, steps: Tensor, form: str, inputs: Inputs) -> Tensor:
    """Mean squared error of each output (out, 1)."""
    errors = w - lowbit.values(codes, steps, form)
    sums, loss = torch.zeros(len(w), inputs.factor.shape[1]), torch.zeros(len(w), 1)
    for first in range(0, w.shape[1], RUN):
        sums, loss = _onto(sums, loss, errors[:, first : first + RUN], inputs, first)
    return _with_squares(loss, sums)


def _onto(sums: Tensor, loss: Tensor, errors: Tensor, inputs: Inputs, first: int) -> tuple[Tensor, Tensor]:
    """What errors (out, 16) from input `first` on add to sums by direction, and to the loss by the rest."""
    for i, error in enumerate(errors.unbind(-1)):
        error = error[:, None]
        sums = _fma(inputs.factor[first + i], error, sums)
        loss = _fma(inputs.rest[first + i] * error, error, loss)
    return sums, loss


def _with_squares(loss: Tensor, sums: Tensor) -> Tensor:
    return reduce(lambda loss, sum: _fma(sum[:, None], sum[:, None], loss), sums.unbind(-1), loss)


def _fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c of fp32, rounded once: in fp64 rounded to odd, which a second rounding does not change."""
    product, c = a.double() * b.double(), c.double()  # exact
    total = product + c
    back = total - product
    lost = (product - (total - back)) + (c - back)
    even = total.view(torch.int64) & 1 == 0
    toward = torch.nextafter(total, torch.where(lost > 0, torch.inf, -torch.inf))
    return torch.where((lost != 0) & even, toward, total).float()


def _gains(factor: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """What v4k_carry_gains computes."""
    factor64, rank = factor.double(), factor.shape[1]
    gains, left = torch.empty(factor.shape), torch.eye(rank, dtype=torch.float64)
    for j in range(len(factor) - 1, -1, -1):
        v = reduce(torch.add, factor64[j, :, None] * left)
        divisor = reduce(torch.add, factor64[j] * v, rest[j].double())
        gains[j] = (v / divisor).float()
        left = left - (v / divisor)[:, None] * v
    runs = (x.double().unflatten(0, (-1, RUN)) for x in (factor, gains))
    within = reduce(torch.add, (a[:, :, None] * b[:, None] for a, b in zip(*(x.unbind(-1) for x in runs))))
    return gains, within.flatten(0, 1).float()
