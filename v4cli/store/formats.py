"""The number formats of weights (v4kernels/formats.py), both ways: ENCODE and DECODE by name of the format. Official
(spec 2.2): FP8 e4m3 with a power-of-two scale per 128x128 block, and packed FP4 e2m1 with one per 32 inputs; scales are
ue8m0 bytes, 2^(byte - 127). The store's own: symmetric int8 and int4 with one BF16 scale per 32 inputs, and q3 and q2
(lowbit.py), whose functions to encode also take the importance of each input."""

import torch
import torch.nn.functional as F
from torch import Tensor
from v4kernels import native
from v4kernels.formats import FORMATS, GROUP
from v4kernels.reference.quant import FP4_MAX, FP8_MAX, pow2_ceil, round_e2m1

from v4cli.store import lowbit

BLOCK = FORMATS["fp8"].group
FP8_VALUES = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
FP4_VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
SMALLEST = 2.0**-100  # scale floor: an all-zero block still needs a finite scale


def decode_fp8(weight: Tensor, scale: Tensor) -> Tensor:
    """weight (out, in) float8_e4m3fn, scale (ceil(out/128), ceil(in/128)) float8_e8m0fnu -> fp32 (out, in)."""
    codes = weight.view(torch.uint8).flatten().int()
    values = FP8_VALUES.index_select(0, codes)  # several times as fast as torch converts
    return values.view(weight.shape).mul_(_spread(scale.float(), weight.shape))


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
    values = (w.unflatten(-1, (-1, GROUP)) / scale[..., None]).clamp(-FP4_MAX, FP4_MAX).flatten(-2)
    return pack_fp4(values), scale.to(torch.float8_e8m0fnu)


def pack_fp4(values: Tensor) -> Tensor:
    """fp32 (out, in) in [-6, 6] -> int8 codes (out, in/2) of the nearest e2m1 values, low nibble first."""
    values = round_e2m1(values)
    magnitude = torch.searchsorted(FP4_VALUES[:8].contiguous(), values.abs().contiguous())
    codes = (magnitude + 8 * torch.signbit(values)).to(torch.uint8)
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).view(torch.int8)


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


def encode_int8(w: Tensor, group: int = GROUP) -> tuple[Tensor, Tensor]:
    """fp32 (out, in) -> int8 codes (out, in) and bf16 scales (out, in/group); stores have groups of 32.

    Per group the better, by squared error, of amax/127 and the next power of two: weights that come from FP8 often
    lie on a power-of-two grid, which the latter then meets exactly.
    """
    groups = w.unflatten(-1, (-1, group))
    tight = (groups.abs().amax(-1, keepdim=True) / 127).clamp_min(SMALLEST)
    return _best(groups, (_bf16_up(tight), pow2_ceil(tight)), -127, 127)


def encode_int4(w: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 (out, in) -> packed uint8 codes (out, in/2) and bf16 scales (out, in/32), of least squared error.

    The scale takes the sign that puts the largest value on code -8; tried are scales from no clipping to about a
    fifth clipped, which is where the least error of a group of 32 lies.
    """
    groups = w.unflatten(-1, (-1, GROUP))
    peak = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    peak = torch.where(peak.abs() < SMALLEST, SMALLEST, peak)
    candidates = [(peak / code).bfloat16().float() for code in (-8.0, -7.4, 7.0, -9.2, -8.6, 7.6)]
    codes, scale = _best(groups, candidates, -8, 7)
    codes = (codes + 8).view(torch.uint8)
    return codes[..., 0::2] | (codes[..., 1::2] << 4), scale


def _best(groups: Tensor, scales, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Of several scales per group the one of least squared error: int8 codes (out, in), bf16 scales (out, groups)."""
    best_scale = best_error = None
    for scale in scales:
        q = (groups / scale).round_().clamp_(low, high)
        error = torch.addcmul(groups, q, scale, value=-1).square_().sum(-1, keepdim=True)
        if best_error is None:
            best_scale, best_error = scale, error
            continue
        best_scale = torch.where(error < best_error, scale, best_scale)
        best_error = torch.minimum(error, best_error)
    q = (groups / best_scale).round_().clamp_(low, high)  # once more is faster than choosing among codes
    return q.flatten(-2).to(torch.int8), best_scale.squeeze(-1).bfloat16()


def decode_int8(codes: Tensor, scale: Tensor) -> Tensor:
    """What encode_int8 wrote, in fp32."""
    return (codes.float().unflatten(-1, (scale.shape[-1], -1)) * scale.float()[..., None]).flatten(-2)


def decode_int4(packed: Tensor, scale: Tensor) -> Tensor:
    """What encode_int4 wrote, in fp32."""
    codes = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2).float() - 8
    return (codes.unflatten(-1, (-1, GROUP)) * scale.float()[..., None]).flatten(-2)


def _bf16_up(x: Tensor) -> Tensor:
    """Smallest bf16 number >= x, for positive fp32 x."""
    return ((x.view(torch.int32) + 0xFFFF) & ~0xFFFF).view(torch.float32)


def encode_q3(w: Tensor, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """fp32 (out, in) and what an error counts at each input (in,) -> uint8 codes and scales as stored."""
    return lowbit.encode(w, "q3", importance)


def encode_q2(w: Tensor, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same at 2 bits."""
    return lowbit.encode(w, "q2", importance)


def decode_q3(codes: Tensor, scale: Tensor) -> Tensor:
    """What encode_q3 wrote, in fp32."""
    return lowbit.decode(codes, scale, "q3")


def decode_q2(codes: Tensor, scale: Tensor) -> Tensor:
    """What encode_q2 wrote, in fp32."""
    return lowbit.decode(codes, scale, "q2")


ENCODE = {
    "fp8": encode_fp8, "fp4": encode_fp4, "int8": encode_int8, "int4": encode_int4, "q3": encode_q3, "q2": encode_q2,
}  # fmt: skip
DECODE = {
    "fp8": decode_fp8, "fp4": decode_fp4, "int8": decode_int8, "int4": decode_int4, "q3": decode_q3, "q2": decode_q2,
}  # fmt: skip


def decode(form: str, codes: Tensor, scale: Tensor) -> Tensor:
    """What DECODE gives, to the bit, by the library where there is one."""
    if native.available() and FORMATS[form].id:
        return native.decode(codes, scale, form)
    return DECODE[form](codes, scale)


def rounding(form: str, codes: Tensor, scale: Tensor, values: Tensor) -> tuple[float, float]:
    """Sums of the squared errors of codes and scales that stand for values (out, in) fp32, and of their squares; not
    finite where a value is not."""
    if native.available() and FORMATS[form].id:
        return native.rounding(codes, scale, form, values)
    values = values.double()
    return float((DECODE[form](codes, scale) - values).square_().sum()), float(values.square().sum())
