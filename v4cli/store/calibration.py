"""A calibration: what inputs the routed experts of a model get, from texts; a file that other machines can use.

It is a safetensors file; `__metadata__` has its format, the tokens it was made of and a sha256 of everything else.
Sizes: E experts, D hidden_size, I moe_intermediate_size, R, Q ranks.

| tensor            | holds                                                                                     |
|-------------------|-------------------------------------------------------------------------------------------|
| layers.L.hits     | I64 [E]: tokens that were routed to each expert                                           |
| layers.L.x        | BF16 [E, D]: mean square of each input of w1 and w3, over these tokens                    |
| layers.L.z        | BF16 [E, I]: the same of w2, whose inputs are weighted by the route                       |
| layers.L.axes     | BF16 [R, D]: orthonormal directions in which inputs of w1 and w3 vary most, of all tokens |
| layers.L.along    | BF16 [E, R]: root mean square of each expert's inputs along these axes                    |
| layers.L.together | I8 [E, R (R + 1) / 2]: T by rows, an upper triangle, times 127: second moments along the  |
|                   | axes, each divided by its root mean square, are T^T T                                     |
| layers.L.own      | I8 [E, Q, I]: C times 127: second moments of w2's inputs, divided alike, are nearly C^T C |

Tokens are a sample: what is known of an expert counts as its hits do beside PRIOR tokens of its layer's mean.
"""

import hashlib
import json
import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from v4cli import files, jsonfile
from v4cli.errors import ModelError, UsageError
from v4cli.files import write_atomically
from v4cli.model.config import V4Config
from v4cli.store.header import read_header

if TYPE_CHECKING:
    from torch import Tensor

    from v4cli.store.rounding import Inputs

FORMAT = "v4cli calibration 2"
PRIOR = 256
RANK = 256  # of axes
OWN_BYTES = 16 << 10  # of the moments of an expert's w2
UNIT = 127  # of what is stored as I8
FORMATS = ("q3", "q2")  # what it helps to round to
MATRIX = re.compile(r"layers\.(\d+)\.ffn\.experts\.(\d+)\.(w[123])\.weight")
MAX_BYTES = 4 << 30


def ranks(config: V4Config) -> tuple[int, int]:
    """R and Q."""
    d, i = config.hidden_size, config.moe_intermediate_size
    return min(d, RANK), min(i, max(1, OWN_BYTES // i))


def shapes(config: V4Config) -> dict[str, tuple[str, tuple[int, ...]]]:
    """dtype and shape of every tensor."""
    e, d, i = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
    r, q = ranks(config)
    own = {"hits": ("I64", (e,)), "x": ("BF16", (e, d)), "z": ("BF16", (e, i)),
           "axes": ("BF16", (r, d)), "along": ("BF16", (e, r)), "together": ("I8", (e, r * (r + 1) // 2)),
           "own": ("I8", (e, q, i))}  # fmt: skip
    return {f"layers.{n}.{name}": about for n in range(config.num_hidden_layers) for name, about in own.items()}


def write(path: Path, config: V4Config, tensors: dict[str, np.ndarray], tokens: int) -> None:
    """`tensors`: of every name of `shapes` the bytes as uint8, BF16 as uint16 or integers. Whole or not at all."""
    header, data, end = {}, [], 0
    for name, (dtype, shape) in shapes(config).items():
        raw = np.ascontiguousarray(tensors[name]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(raw)]}
        data.append(raw)
        end += len(raw)
    about = {"format": FORMAT, "tokens": str(tokens)}
    body = b"".join(data)
    about["sha256"] = _digest(about, body)
    text = json.dumps({"__metadata__": about} | header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_atomically(path, struct.pack("<Q", len(text)) + text + body)


def _digest(about: dict, body: bytes) -> str:
    told = json.dumps({key: value for key, value in about.items() if key != "sha256"}, sort_keys=True).encode()
    return hashlib.sha256(told + b"\n" + body).hexdigest()


@dataclass(frozen=True, eq=False)
class Calibration:
    """An opened one, in memory."""

    path: Path
    sha256: str
    tokens: int
    arrays: dict[str, np.ndarray]  # BF16 as fp32

    @classmethod
    def open(cls, path: Path) -> "Calibration":
        """ModelError, naming the file, unless every byte is as it was written."""
        places = read_header(path)
        raw = files.contents(path, MAX_BYTES)
        (length,) = struct.unpack("<Q", raw[:8])
        about = jsonfile.parse(raw[8 : 8 + length], f"{path}: header").get("__metadata__")
        if not isinstance(about, dict) or about.get("format") != FORMAT or not str(about.get("tokens")).isdecimal():
            raise ModelError(f"{path}: not a calibration of this version", "v4 calibrate MODEL makes one")
        if about.get("sha256") != _digest(about, raw[8 + length :]):
            raise ModelError(f"{path}: its checksum differs, so it is damaged", "v4 calibrate MODEL makes one")
        arrays = {}
        for name, place in places.items():
            values = np.frombuffer(raw, {"BF16": "<u2", "I64": "<i8", "I8": "i1"}.get(place.spec.dtype, "u1"),
                                   int(np.prod(place.spec.shape)), place.offset)  # fmt: skip
            if place.spec.dtype == "BF16":
                values = (values.astype(np.uint32) << 16).view(np.float32)
            arrays[name] = values.reshape(place.spec.shape)
        return cls(path, about["sha256"], int(about["tokens"]), arrays)

    @property
    def record(self) -> dict:
        """What a manifest says of it."""
        return {"file": str(self.path.resolve()), "sha256": self.sha256, "tokens": self.tokens}

    def check(self, config: V4Config) -> None:
        """UsageError unless it is of a model of these sizes."""
        want = {name: shape for name, (_, shape) in shapes(config).items()}
        if {name: array.shape for name, array in self.arrays.items()} != want:
            raise UsageError(f"{self.path}: a calibration of a model of other sizes", "v4 calibrate MODEL makes one")

    def encode(self, name: str, form: str, w: "Tensor") -> "tuple[Tensor, Tensor]":
        """A routed expert's matrix (out, in) fp32, all rows, to codes and scales in q3 or q2."""
        from v4cli.store import rounding

        layer, expert, matrix = self._matrix(name)
        return rounding.encode(w, form, (_down if matrix == "w2" else _up)(self, layer, expert))

    def importance(self, name: str) -> "Tensor":
        """Sums of squares (in,) of the inputs of a routed expert's matrix, above zero: the more it is used the more."""
        layer, expert, matrix = self._matrix(name)
        squares = self._squares(layer, "z" if matrix == "w2" else "x", expert)
        return max(float(self.arrays[f"layers.{layer}.hits"][expert]), 1.0) * (squares + 0.01 * squares.mean())

    def knows(self, name: str) -> bool:
        """Whether it has anything on a matrix: those of draft blocks it has not."""
        return MATRIX.fullmatch(name) is not None

    def _matrix(self, name: str) -> tuple[int, int, str]:
        found = MATRIX.fullmatch(name)
        assert found is not None
        return int(found[1]), int(found[2]), found[3]

    def _share(self, layer: int, expert: int) -> float:
        """How much what is known of an expert counts, beside its layer's mean."""
        hits = float(self.arrays[f"layers.{layer}.hits"][expert])
        return hits / (hits + PRIOR)

    def _squares(self, layer: int, of: str, expert: int) -> "Tensor":
        """Mean squares (n,) above zero of `x`, `z` or `along`."""
        import torch

        own, hits = self.arrays[f"layers.{layer}.{of}"], self.arrays[f"layers.{layer}.hits"].astype(np.float64)
        own = own.astype(np.float64) ** (2 if of == "along" else 1)
        share, mean = self._share(layer, expert), hits @ own / max(hits.sum(), 1.0)
        return torch.from_numpy(share * own[expert] + (1 - share) * mean).float().clamp_min(1e-30)


@lru_cache(maxsize=1)  # of w1, then of w3
def _up(calibration: Calibration, layer: int, expert: int) -> "Inputs":
    """What is known of the inputs of w1 and w3."""
    import torch

    from v4cli.store import rounding

    name, share = f"layers.{layer}.", calibration._share(layer, expert)
    arrays = (calibration.arrays[name + "axes"], calibration.arrays[name + "along"][expert])
    axes, along = (torch.from_numpy(array.astype(np.float64)) for array in arrays)
    triangle = torch.zeros(len(axes), len(axes), dtype=torch.float64)
    triangle[*torch.triu_indices(*triangle.shape)] = _unpacked(calibration.arrays[name + "together"][expert])
    triangle *= along
    moments = share * triangle.t() @ triangle
    missing = calibration._squares(layer, "along", expert).double() - moments.diagonal()
    moments.diagonal().add_(missing.clamp_min(0))
    factor = torch.linalg.cholesky(moments + 1e-6 * moments.diagonal().mean() * torch.eye(len(axes)), upper=True)
    return rounding.Inputs.by(factor @ axes, calibration._squares(layer, "x", expert))


def _down(calibration: Calibration, layer: int, expert: int) -> "Inputs":
    """What is known of the inputs of w2."""
    import torch

    from v4cli.store import rounding

    name = f"layers.{layer}."
    own = _unpacked(calibration.arrays[name + "own"][expert])
    squares = torch.from_numpy(calibration.arrays[name + "z"][expert].astype(np.float64))
    return rounding.Inputs.by(
        own * (calibration._share(layer, expert) * squares).sqrt(), calibration._squares(layer, "z", expert)
    )


def _unpacked(values: np.ndarray) -> "Tensor":
    """What is stored as I8, in fp64."""
    import torch

    return torch.from_numpy(values.astype(np.float64) / UNIT)
