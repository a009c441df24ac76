"""How numbers lie in files of other programs: block by block, to the bytes that this program keeps them as. numpy only.

GGUF's MXFP4 are the official FP4 bits in another order: a scale byte, then 16 bytes that hold inputs j and j + 16.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packing:
    """Blocks of `raw` bytes that become `unpacked` bytes each; `unpack`: uint8 (n, raw) -> (n, unpacked)."""

    raw: int
    unpacked: int
    unpack: Callable[[np.ndarray], np.ndarray]

    def bytes_of(self, data: bytes) -> bytes:
        """Whole blocks, unpacked."""
        return self.unpack(np.frombuffer(data, np.uint8).reshape(-1, self.raw)).tobytes()


def _mxfp4_codes(blocks: np.ndarray) -> np.ndarray:
    low, high = blocks[:, 1:] & 15, blocks[:, 1:] >> 4
    codes = np.concatenate((low, high), axis=1)  # in the order of the inputs
    return codes[:, 0::2] | codes[:, 1::2] << 4


def _mxfp4_scales(blocks: np.ndarray) -> np.ndarray:
    return blocks[:, :1]


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype("<f4")
    return (np.ascontiguousarray(blocks[:, 2:]).view(np.int8) * scale).astype("<f4").view(np.uint8)


def _f16(blocks: np.ndarray) -> np.ndarray:
    return blocks.view("<f2").astype("<f4").view(np.uint8)


def _i32(blocks: np.ndarray) -> np.ndarray:
    return blocks.view("<i4").astype("<i8").view(np.uint8)


PACKINGS = {
    "": Packing(1, 1, lambda blocks: blocks),  # as safetensors have them
    "mxfp4 codes": Packing(17, 16, _mxfp4_codes),
    "mxfp4 scales": Packing(17, 1, _mxfp4_scales),
    "q8_0": Packing(34, 128, _q8_0),
    "f16": Packing(2, 4, _f16),
    "i32": Packing(4, 8, _i32),
}
