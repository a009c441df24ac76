"""The checkpoint's number formats, both ways (spec 2.2): FP8 e4m3 with a power-of-two scale per 128x128 block, and
packed FP4 e2m1 with one per 32 inputs. Scales are ue8m0 bytes: 2^(byte - 127)."""

import torch
import torch.nn.functional as F
from torch import Tensor
from v4kernels.quant import FP4_MAX, FP8_MAX, pow2_ceil, round_e2m1

BLOCK = 128
GROUP = 32
FP4_VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
SMALLEST = 2.0**-100  # scale floor: an all-zero block still needs a finite scale


def decode_fp8(weight: Tensor, scale: Tensor) -> Tensor:
    """weight (out, in) float8_e4m3fn, scale (ceil(out/128), ceil(in/128)) float8_e8m0fnu -> fp32 (out, in)."""
    return weight.float() * _spread(scale.float(), weight.shape)


def decode_fp4(packed: Tensor, scale: Tensor) -> Tensor:
    """packed (out, in/2) int8, low nibble first, scale (out, in/32) float8_e8m0fnu -> fp32 (out, in)."""
    codes = packed.view(torch.uint8).long()
    values = FP4_VALUES[torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)]
    return (values.unflatten(-1, (-1, GROUP)) * scale.float()[..., None]).flatten(-2)


def encode_fp8(w: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 (out, in) -> float8_e4m3fn weight and float8_e8m0fnu block scales."""
    scale = _fp8_scale(w)
    return (w / _spread(scale, w.shape)).to(torch.float8_e4m3fn), scale.to(torch.float8_e8m0fnu)


def encode_fp4(w: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 (out, in) -> packed int8 codes and float8_e8m0fnu scales."""
    scale = _fp4_scale(w)
    values = round_e2m1((w.unflatten(-1, (-1, GROUP)) / scale[..., None]).clamp(-FP4_MAX, FP4_MAX)).flatten(-2)
    magnitude = torch.searchsorted(FP4_VALUES[:8].contiguous(), values.abs().contiguous())
    codes = (magnitude + 8 * torch.signbit(values)).to(torch.uint8)
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).view(torch.int8), scale.to(torch.float8_e8m0fnu)


def fake_fp8(w: Tensor) -> Tensor:
    """What encode_fp8 and decode_fp8 make of w."""
    scale = _spread(_fp8_scale(w), w.shape)
    return (w / scale).to(torch.float8_e4m3fn).float() * scale


def fake_fp4(w: Tensor) -> Tensor:
    """What encode_fp4 and decode_fp4 make of w."""
    groups, scale = w.unflatten(-1, (-1, GROUP)), _fp4_scale(w)[..., None]
    return (round_e2m1((groups / scale).clamp(-FP4_MAX, FP4_MAX)) * scale).flatten(-2)


def _spread(scale: Tensor, shape) -> Tensor:
    rows = scale.repeat_interleave(BLOCK, 0)[: shape[0]]
    return rows.repeat_interleave(BLOCK, 1)[:, : shape[1]]


def _fp8_scale(w: Tensor) -> Tensor:
    padded = F.pad(w, (0, -w.shape[1] % BLOCK, 0, -w.shape[0] % BLOCK))
    blocks = padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    return pow2_ceil((blocks.abs().amax((1, 3)) / FP8_MAX).clamp_min(SMALLEST))


def _fp4_scale(w: Tensor) -> Tensor:
    """Per group the better of two powers of two: the one that clips nothing and its half, by squared error."""
    groups = w.unflatten(-1, (-1, GROUP))
    high = pow2_ceil((groups.abs().amax(-1) / FP4_MAX).clamp_min(SMALLEST))

    def error(scale: Tensor) -> Tensor:
        rounded = round_e2m1((groups / scale[..., None]).clamp(-FP4_MAX, FP4_MAX)) * scale[..., None]
        return (rounded - groups).square().sum(-1)

    return torch.where(error(high / 2) < error(high), high / 2, high)
