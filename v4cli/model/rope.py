"""RoPE frequency tables: one for window-only layers, one (base 160000, YaRN) for compressed layers (spec 3.4)."""

import math

import torch
from torch import Tensor


def frequencies(config, ratio: int) -> Tensor:
    """Angular frequencies (qk_rope_head_dim / 2,) fp32, radians per token, for a layer of this ratio."""
    dims = config.qk_rope_head_dim
    base = config.compress_rope_theta if ratio else config.rope_theta
    freqs = 1.0 / base ** (torch.arange(0, dims, 2, dtype=torch.float32) / dims)
    if not ratio:
        return freqs

    def correction(beta: float) -> float:
        turns = config.original_max_position_embeddings / (beta * 2 * math.pi)
        return dims * math.log(turns) / (2 * math.log(base))

    low = max(math.floor(correction(config.beta_fast)), 0)
    high = min(math.ceil(correction(config.beta_slow)), dims - 1)
    ramp = ((torch.arange(dims // 2, dtype=torch.float32) - low) / max(high - low, 1e-3)).clamp(0, 1)
    return freqs * (1 - ramp) + freqs / config.rope_factor * ramp


def cis(freqs: Tensor, positions: Tensor) -> Tensor:
    """Unit complex numbers e^(i * position * frequency): (N,) positions -> (N, R/2) complex64."""
    angles = torch.outer(positions.float(), freqs)
    return torch.polar(torch.ones_like(angles), angles)
