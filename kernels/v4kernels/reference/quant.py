"""Simulated quantization of activations, KV entries and index vectors (spec 3.9), in plain torch.

Each function quantizes and dequantizes at once: the result has the input's dtype and only values that the
low-precision format can hold. Scales are powers of two whose exponent is taken from the float's bits.
"""

import torch
from torch import Tensor

FP8_MAX = 448.0
FP4_MAX = 6.0
FP4_MIN_AMAX = 6.0 * 2.0**-126


def pow2_ceil(x: Tensor) -> Tensor:
    """Smallest power of two >= x, for positive normal fp32 x, by exponent bits."""
    bits = x.float().view(torch.int32)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0).to(torch.int32)
    return (exponent << 23).view(torch.float32)


def fake_fp8(x: Tensor, group: int) -> Tensor:
    """e4m3 with one power-of-two scale per `group` consecutive elements of the last dim (last group may be short)."""
    k = x.shape[-1]
    pad = -k % group
    padded = torch.nn.functional.pad(x.float(), (0, pad)) if pad else x.float()
    blocks = padded.unflatten(-1, (-1, group))
    scale = pow2_ceil(blocks.abs().amax(-1, keepdim=True).clamp_min(1e-4) / FP8_MAX)
    q = (blocks / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).float()
    return (q * scale).flatten(-2)[..., :k].to(x.dtype)


def round_e2m1(x: Tensor) -> Tensor:
    """Round fp32 in [-6, 6] to the nearest of 0, .5, 1, 1.5, 2, 3, 4, 6 and their negatives, ties to even code."""
    a = x.abs()
    step = torch.where(a < 2.0, 0.5, torch.where(a < 4.0, 1.0, 2.0))
    return torch.copysign(torch.round(a / step) * step, x)


def fake_fp4(x: Tensor, group: int = 32) -> Tensor:
    """e2m1 with one power-of-two scale per `group` consecutive elements of the last dim."""
    blocks = x.float().unflatten(-1, (-1, group))
    scale = pow2_ceil(blocks.abs().amax(-1, keepdim=True).clamp_min(FP4_MIN_AMAX) / FP4_MAX)
    q = round_e2m1((blocks / scale).clamp(-FP4_MAX, FP4_MAX))
    return (q * scale).flatten(-2).to(x.dtype)


def hadamard(x: Tensor) -> Tensor:
    """Orthonormal Walsh-Hadamard transform (Sylvester order) of the last dim, a power of two."""
    n = x.shape[-1]
    y = x.float()
    width = 1
    while width < n:
        y = y.unflatten(-1, (-1, 2, width))
        y = torch.stack((y[..., 0, :] + y[..., 1, :], y[..., 0, :] - y[..., 1, :]), dim=-2).flatten(-3)
        width *= 2
    return (y * n**-0.5).to(x.dtype)
