"""Rounding a matrix with what is known of its inputs: an error made at one input is carried to those that come later,
where inputs that go together make it good (GPTQ; LDLQ is the same)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from v4cli.store import lowbit
from v4cli.store.lowbit import RUN, Scales

BLOCK = 128  # inputs whose errors are carried within before they are carried to all others
DAMPING = 0.01  # of the mean of the diagonal: what is known of inputs is known of a sample


@dataclass(frozen=True, eq=False)
class Carry:
    """How errors are carried: `moments` (in, in), second moments of inputs, damped, and `triangle` (in, in), an upper
    one, whose row i says what an error at input i, over its diagonal, is worth at the inputs behind."""

    moments: Tensor
    triangle: Tensor

    @classmethod
    def by(cls, moments: Tensor) -> "Carry":
        damped = moments.double()
        damped = damped + torch.eye(len(damped)) * (DAMPING * damped.diagonal().mean()).clamp_min(1e-30)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        return cls(damped.float(), torch.linalg.cholesky(inverse, upper=True).float())

    def loss(self, errors: Tensor) -> Tensor:
        """Mean squared error of each output (out, 1) by errors of its weights (out, in)."""
        return (errors @ self.moments).mul_(errors).sum(-1, keepdim=True)


def encode(w: Tensor, form: str, importance: Tensor, carry: Carry | None) -> tuple[Tensor, Tensor]:
    """w (out, in) fp32 -> codes and scales as stored, in q3 or q2. `importance` (in,): what a squared error counts at
    each input. Without `carry` each weight is rounded for itself; so are the outputs that carrying makes worse, as
    weights that have to make much good may be beyond all levels."""
    scales = lowbit.fit(w, form, importance)
    codes = _nearest(w, scales, form)
    if carry is not None:
        other_codes, other = _carrying(w, scales.row, form, importance, carry.triangle)
        better = carry.loss(_values(other_codes, other, form) - w) < carry.loss(_values(codes, scales, form) - w)
        codes = torch.where(better, other_codes, codes)
        scales = Scales(scales.row, torch.where(better, other.number, scales.number))
    return lowbit.pack(codes, form), lowbit.pack_scales(scales)


def _nearest(w: Tensor, scales: Scales, form: str) -> Tensor:
    return lowbit.nearest(w, scales.steps().repeat_interleave(RUN, -1), form)


def _values(codes: Tensor, scales: Scales, form: str) -> Tensor:
    return lowbit.values(codes, scales.steps().repeat_interleave(RUN, -1), form)


def _carrying(w: Tensor, row: Tensor, form: str, importance: Tensor, carry: Tensor) -> tuple[Tensor, Scales]:
    """Codes (out, in), input by input, and scales: each run's multiplier is chosen when its weights are as they will be
    rounded, but for what is carried within it."""
    left, codes = w.clone(), torch.empty(w.shape, dtype=torch.uint8)
    number = torch.empty(len(w), w.shape[1] // RUN, dtype=torch.int64)
    for first in range(0, w.shape[1], BLOCK):
        last = min(first + BLOCK, w.shape[1])
        block = left[:, first:last].t().contiguous()  # (BLOCK, out): an input's weights lie together
        triangle, errors = carry[first:last, first:last], torch.empty_like(block)
        for i in range(last - first):
            if i % RUN == 0:
                run = slice(first + i, first + i + RUN)
                chosen = lowbit.numbers(block[i : i + RUN].t().contiguous(), row, form, importance[run])
                number[:, (first + i) // RUN] = chosen[:, 0]
                step = Scales(row, chosen).steps()[:, 0]
            code = lowbit.nearest(block[i], step, form)
            errors[i] = (block[i] - lowbit.values(code, step, form)) / triangle[i, i]
            codes[:, first + i] = code
            block[i + 1 :] -= triangle[i, i + 1 :, None] * errors[i]
        left[:, last:] -= errors.t() @ carry[first:last, last:]
    return codes, Scales(row, number)
