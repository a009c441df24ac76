"""Reading a safetensors header without trusting it: names, dtypes, shapes and byte ranges of one file. No torch."""

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from v4kernels.formats import DTYPES

from v4cli import files, jsonfile
from v4cli.errors import ModelError
from v4cli.model.schema import TensorSpec


@dataclass(frozen=True)
class TensorPlace:
    """Where one tensor lies: absolute byte range in a file, and what it holds.

    In a file of another program it may lie packed (store/packings.py); the spec is then what it unpacks to. `official`
    is the dtype that an official checkpoint has for it, where that is another.
    """

    path: Path
    offset: int
    spec: TensorSpec
    packing: str = ""
    official: str = ""


def read_header(path: Path) -> dict[str, TensorPlace]:
    """All tensors of one file. ModelError names the file and the tensor: truncated, overlapping, wrong length."""
    try:
        with files.open_regular(path) as file:
            size, start = os.fstat(file.fileno()).st_size, file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
            if not 2 <= length <= min(jsonfile.MAX_BYTES, size - 8):
                raise ModelError(f"{path}: not a safetensors file, or truncated ({size} bytes)")
            header = jsonfile.parse(file.read(length), f"{path}: header")
    except OSError as problem:
        raise ModelError(f"{path}: cannot be read ({problem.strerror})") from None
    if not isinstance(header, dict):
        raise ModelError(f"{path}: header is not a JSON object")
    header.pop("__metadata__", None)
    base = 8 + length
    places = {name: _place(path, name, entry, base) for name, entry in header.items()}
    at = base
    for name, place in sorted(places.items(), key=lambda item: (item[1].offset, item[1].spec.nbytes)):
        if place.offset != at:
            raise ModelError(f"{path}: tensor {name} starts at byte {place.offset}, expected {at}")
        at += place.spec.nbytes
    if at != size:
        state = "truncated" if at > size else "longer than its header says"
        raise ModelError(f"{path}: {state} ({size} bytes, header describes {at})")
    return places


def _place(path: Path, name: str, entry, base: int) -> TensorPlace:
    where = f"{path}: tensor {name[:200]}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ModelError(f"{where}: bad header entry")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ModelError(f"{where}: dtype {jsonfile.shown(dtype)} does not occur in V4 checkpoints")
    if not _naturals(shape) or len(shape) > 4 or not _naturals(offsets) or len(offsets) != 2:
        raise ModelError(f"{where}: bad shape or data_offsets")
    begin, end = offsets
    if end - begin != DTYPES[dtype].n_bytes * math.prod(shape):
        raise ModelError(f"{where}: {end - begin} bytes do not match {dtype} {list(shape)}")
    return TensorPlace(path, base + begin, TensorSpec(dtype, tuple(shape)))


def _naturals(value) -> bool:
    return isinstance(value, list) and all(
        isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 1 << 62 for v in value
    )
