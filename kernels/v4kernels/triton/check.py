"""Whether a device computes what the CPU computes, to the bit: small kernels that show in a second what would be wrong
with rounding, fused sums, or matrix units.

A check says what differs, and nothing if all is right.
"""

import numpy as np
import torch

from v4kernels import native
from v4kernels.triton import launch, linear, quantize
from v4kernels.triton.device import Device

GROUPS, BLOCK = 256, 32  # of 32 values that are quantized; a program's
COLS, OUTPUTS, ROWS = 2048, 64, 8  # of a matrix; rows of a program


def quantizing(device: Device) -> str:
    """v4k_quantize: values of every size, a group of zeros, ties, and a group that is not finite."""
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((GROUPS, 32)) * np.exp2(rng.integers(-120, 100, (GROUPS, 1)))).astype(np.float32)
    x[0], x[1], x[2, 5] = 0.0, np.arange(32) / 2 * 127 / 15.5, np.nan
    want = [part.numpy() for part in native.quantize(torch.from_numpy(x.reshape(1, -1)))]
    at, codes, scales = (device.alloc(n) for n in (x.nbytes, x.size, 4 * GROUPS))
    try:
        device.write(at, x)
        device.launch(quantize.quantize, (GROUPS // BLOCK,), (at, codes, scales, GROUPS), {"BLOCK": BLOCK})
        found = device.read(codes, x.size).view(np.int8), device.read(scales, 4 * GROUPS).view(np.float32)
    finally:
        for address in (at, codes, scales):
            device.free(address)
    return _differing("codes", want[0], found[0]) or _differing("scales", want[1], found[1])


def multiplying(device: Device) -> str:
    """v4k_linear of FP4 weights, one row."""
    rng = np.random.default_rng(2)
    w, scale = (
        rng.integers(0, 256, (OUTPUTS, COLS // 2), np.uint8),
        rng.integers(110, 130, (OUTPUTS, COLS // 32), np.uint8),
    )
    x = torch.from_numpy(rng.standard_normal((1, COLS)).astype(np.float32))
    matrix = native.matrix(torch.from_numpy(w), torch.from_numpy(scale).view(torch.float8_e8m0fnu), "fp4")
    want, inputs = native.linear(x, matrix).numpy(), [part.numpy() for part in native.quantize(x)]
    arrays = [w, scale, *inputs]
    places = [device.alloc(array.nbytes) for array in arrays] + [device.alloc(4 * OUTPUTS)]
    constants = {"K": COLS, "ROWS": ROWS, "ASM": launch.assembly(device.gpu)}
    try:
        for address, array in zip(places, arrays):
            device.write(address, array)
        device.launch(linear.linear_fp4, (OUTPUTS // ROWS, 1), (*places, OUTPUTS), constants)
        found = device.read(places[-1], 4 * OUTPUTS).view(np.float32)
    finally:
        for address in places:
            device.free(address)
    return _differing("sums", want, found)


def _differing(what: str, want: np.ndarray, found: np.ndarray) -> str:
    """How many values have other bits; NaN are all alike."""
    want, found = want.ravel(), found.ravel()
    same = (want.view(np.uint8) == found.view(np.uint8)).reshape(want.size, -1).all(1)
    if want.dtype == np.float32:
        same |= np.isnan(want) & np.isnan(found)
    wrong = int((~same).sum())
    return f"{wrong:,} of {want.size:,} {what} are not the CPU's" if wrong else ""
