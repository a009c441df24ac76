"""RoPE frequency tables: one for window-only layers, one (base 160000, YaRN) for compressed layers (spec 3.4)."""

import math

import numpy as np

from v4cli.model.config import V4Config


def frequencies(config: V4Config, ratio: int) -> np.ndarray:
    """Angular frequencies (qk_rope_head_dim / 2,) fp32, radians per token, for a layer of this ratio."""
    dims = config.qk_rope_head_dim
    base = config.compress_rope_theta if ratio else config.rope_theta
    exponents = np.arange(0, dims, 2, dtype=np.float32) / np.float32(dims)
    freqs = np.float32(1.0) / np.power(base, exponents.astype(np.float64)).astype(np.float32)
    if not ratio:
        return freqs

    def correction(beta: float) -> float:
        turns = config.original_max_position_embeddings / (beta * 2 * math.pi)
        return dims * math.log(turns) / (2 * math.log(base))

    low = max(math.floor(correction(config.beta_fast)), 0)
    high = min(math.ceil(correction(config.beta_slow)), dims - 1)
    ramp = (np.arange(dims // 2, dtype=np.float32) - np.float32(low)) / np.float32(max(high - low, 1e-3))
    ramp = ramp.clip(0, 1)
    return freqs * (1 - ramp) + freqs / np.float32(config.rope_factor) * ramp
