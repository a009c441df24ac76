"""Random weights of a model's true shape, packed as in a store, in memory: enough to time it, not to say anything."""

import math

import numpy as np
import torch
from v4kernels.cpu import PackedWeight
from v4kernels.formats import OFFICIAL

from v4cli.bench.synthetic import Pool, values
from v4cli.model.schema import expected_tensors
from v4cli.store.recipe import RECIPES, formats_by

POOL_BYTES = 1 << 24
SPREAD = {"fp4": 1.5, "int8": 73.0, "int4": 4.6, "q3": 37.4, "q2": 44.9}  # rms of uniformly random codes


class RandomSource:
    """A source for model.weights.build. Every matrix has memory of its own, filled from one pool of random bytes."""

    def __init__(self, config, quant: str, seed: int = 0):
        self.config, self.specs = config, expected_tensors(config, with_mtp=False)
        self.formats = formats_by(RECIPES[quant].rules, self.specs)
        self.pool = Pool(seed)
        self.bytes = np.random.default_rng(seed).integers(0, 256, POOL_BYTES, np.uint8)
        self.at = 0

    def weight(self, name: str) -> PackedWeight:
        spec = self.specs[name]
        form, rows, cols = self.formats[name], spec.shape[0], OFFICIAL[spec.dtype].cols(spec.shape[1])
        if not form.packed:
            bits = self._values(name).bfloat16().contiguous().view(torch.int16)
            return PackedWeight.of("bf16", bits.numpy())
        stored = form.tensors(rows, cols)
        codes = self._filled(*stored["weight"][1])
        scale = (1.0 if name == "embed.weight" else cols**-0.5) / SPREAD[form.name]
        dtype, shape = stored["scale"]
        if form.row_scale:
            scales = self._filled(*shape)
            scales[:, : form.row_scale].view("<u2")[:] = np.float32(scale).view(np.uint32) >> 16
        elif dtype == "F8_E8M0":
            scales = np.full(shape, 127 + round(math.log2(scale)), np.uint8)
        else:
            scales = np.full(shape, np.float32(scale).view(np.uint32) >> 16, np.uint16)
        return PackedWeight.of(form.name, codes, scales)

    def vector(self, name: str) -> np.ndarray:
        whole = self._values(name)
        return whole.numpy() if whole.dtype == torch.int64 else whole.float().numpy()

    def _values(self, name: str) -> torch.Tensor:
        spec = self.specs[name]
        pieces = [piece.flatten() for piece in values(name, spec, self.pool, self.config)]
        return torch.cat(pieces).reshape(spec.shape)

    def _filled(self, rows: int, width: int) -> np.ndarray:
        out = np.empty(rows * width, np.uint8)
        at = 0
        while at < len(out):
            piece = self.bytes[self.at : self.at + len(out) - at]
            out[at : at + len(piece)] = piece
            at += len(piece)
            self.at = (self.at + len(piece)) % POOL_BYTES
        return out.reshape(rows, width)
