"""Turn official tensors into one part of a store: stream, quantize, checksum, write whole or not at all.

The caller's thread reads and quantizes while another checksums and writes the piece before. Memory is bounded by
BLOCK_VALUES whatever the tensor; files are read with plain reads (a mapping would count every page as resident).
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from v4kernels.formats import FORMATS, OFFICIAL, finite

from v4cli.errors import ModelError
from v4cli.store.calibration import FORMATS as CALIBRATED
from v4cli.store.calibration import Calibration
from v4cli.store.header import TensorPlace
from v4cli.store.packings import PACKINGS
from v4cli.store.parts import Part, Stored
from v4cli.store.recipe import tensor_class
from v4cli.system import replace, sync_folder

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_VALUES = 1 << 18  # quantized together: 1 MiB in fp32; larger temporaries cost more in page faults than in sums
COPY_BYTES = 4 << 20
KEPT = {"BF16": "bfloat16", "F32": "float32"}  # torch's name by dtype, of what is no quantized matrix
FLUSH_BYTES = 64 << 20  # written between two requests that the system send it to the disk


def convert_part(
    part: Part,
    places: Mapping[str, TensorPlace],
    out: Path,
    on_bytes: Callable[[int], None] = lambda n: None,
    calibration: Calibration | None = None,
) -> dict:
    """Write `part` to file `out` from official tensors at `places`; returns its record for the manifest.

    The record holds bytes, sha256 and errors: class of tensor -> relative root mean square error of quantization,
    as [sum of squared errors, sum of squares]. A tensor whose place already has the stored spec is copied, which is
    how a store of another layout is repacked. Low bits are rounded as `calibration` says, if there is one.
    ModelError for values that are not finite or files that end too soon.
    """
    temporary = out.with_name(out.name + ".tmp")
    writer = _Writer(temporary, on_bytes)
    errors: dict[str, list[float]] = {}
    try:
        _write_behind(writer, part.header, _chunks(part, places, errors, calibration))
        if writer.position != part.n_bytes:
            raise AssertionError(f"{part.name}: {writer.position} bytes written, {part.n_bytes} laid out")
        record = writer.finish()
    except BaseException:
        writer.abandon()
        raise
    replace(temporary, out)
    sync_folder(out.parent)
    if errors:
        record["errors"] = {k: [float(f"{v:.6e}") for v in pair] for k, pair in sorted(errors.items())}
    return record


def _write_behind(writer: _Writer, header: bytes, chunks: Iterator[bytes]) -> None:
    """Write header and chunks in a second thread, each while the next is made."""
    with ThreadPoolExecutor(1) as thread:
        written = thread.submit(writer.write, header)
        for chunk in chunks:
            written.result()
            written = thread.submit(writer.write, chunk)
        written.result()


class _Writer:
    """Sequential file writing with a running checksum."""

    def __init__(self, path: Path, on_bytes):
        self.path, self.on_bytes = path, on_bytes
        self.file = path.open("wb")
        self.digest = hashlib.sha256()
        self.position = 0
        self.flushed = 0

    def write(self, data) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.position += len(data)
        if self.position - self.flushed >= FLUSH_BYTES:
            self.flush()
        self.on_bytes(len(data))

    def flush(self) -> None:
        """Have the disk begin: left to itself the system collects gigabytes first, and fsync waits for all of them."""
        if hasattr(os, "posix_fadvise"):
            n = self.position - self.flushed
            os.posix_fadvise(self.file.fileno(), self.flushed, n, os.POSIX_FADV_DONTNEED)
        self.flushed = self.position

    def finish(self) -> dict:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return {"bytes": self.position, "sha256": self.digest.hexdigest()}

    def abandon(self) -> None:
        try:
            self.file.close()
        finally:
            self.path.unlink(missing_ok=True)


def _chunks(
    part: Part, places: Mapping[str, TensorPlace], errors: dict, calibration: Calibration | None
) -> Iterator[bytes]:
    """The part's data in file order."""
    scales: dict[str, bytes] = {}  # of quantized matrices: known when the codes are written
    for name, stored in part.tensors.items():
        if stored.format == "pad":
            yield bytes(stored.spec.nbytes)
        elif name in scales:
            yield scales.pop(name)
        elif name in places and places[name].spec == stored.spec:
            for data in _read(places[name]):
                if not _finite(stored, data):
                    raise ModelError(f"{places[name].path}: tensor {name} holds values that are not finite")
                yield data
        elif {stored.spec.dtype, _dtype(places, stored.source)} == set(KEPT):
            yield from _rounded(stored, places[stored.source])
        elif stored.source not in places or stored.format not in FORMATS or not FORMATS[stored.format].scale:
            raise ModelError(f"{part.name}: the source has no tensor {name} of the right kind")
        else:
            collected: list[bytes] = []
            for codes, scale in _quantized(stored, places, errors, calibration):
                collected.append(scale)
                yield codes
            scales[name.removesuffix("weight") + "scale"] = b"".join(collected)


def _dtype(places: Mapping[str, TensorPlace], name: str) -> str:
    return places[name].spec.dtype if name in places else ""


def _read(place: TensorPlace, piece: int = COPY_BYTES) -> Iterator[bytes]:
    """Bytes of a tensor, unpacked, in pieces of that many; the last may be shorter."""
    left, packing = place.spec.nbytes, PACKINGS[place.packing]
    with place.path.open("rb") as file:
        file.seek(place.offset)
        while left:
            wanted = min(left, piece)
            data = file.read(wanted // packing.unpacked * packing.raw)
            if len(data) < wanted // packing.unpacked * packing.raw:
                raise ModelError(f"{place.path}: ends too soon; the file changed while in use")
            left -= wanted
            yield packing.bytes_of(data) if place.packing else data


def _rounded(stored: Stored, place: TensorPlace) -> Iterator[bytes]:
    """Values that the official checkpoint has in BF16 or F32, and this source in the other of them."""
    import torch

    have, kept = (getattr(torch, KEPT[spec.dtype]) for spec in (place.spec, stored.spec))
    for data in _read(place):
        out = torch.frombuffer(bytearray(data), dtype=have).to(kept).view(torch.uint8).numpy().tobytes()
        if not _finite(stored, out):
            raise ModelError(f"{place.path}: tensor {stored.source} holds values that are not finite")
        yield out


def _finite(stored: Stored, data: bytes) -> bool:
    """Whether values kept as they are, and scales, are finite."""
    import numpy as np

    return finite(stored.spec.dtype, np.frombuffer(data, np.uint8))


def _quantized(
    stored: Stored, places: Mapping[str, TensorPlace], errors: dict, calibration: Calibration | None
) -> Iterator[tuple[bytes, bytes]]:
    """Codes and scales of a matrix, block of rows by block of rows; of one that is calibrated all together."""
    import torch

    from v4cli.store import formats

    encode = formats.ENCODE[stored.format]
    place, least = places[stored.source], FORMATS[stored.format].block_rows
    if calibration is not None and stored.format in CALIBRATED and calibration.knows(stored.source):
        encode, least = partial(calibration.encode, stored.source, stored.format), place.spec.shape[0]
    totals = errors.setdefault(tensor_class(stored.source, place.official or place.spec.dtype), [0.0, 0.0])
    for values in dense_blocks(stored.source, places, least):
        codes, scale = encode(values)
        error, squares = formats.rounding(stored.format, codes, scale, values)
        if not math.isfinite(squares):
            raise ModelError(f"{place.path}: tensor {stored.source} holds values that are not finite")
        totals[0] += error
        totals[1] += squares
        yield codes.view(torch.uint8).numpy().tobytes(), scale.view(torch.uint8).numpy().tobytes()


def dense_blocks(name: str, places: Mapping[str, TensorPlace], block_rows: int = 1) -> Iterator[Tensor]:
    """A matrix in fp32, block of rows by block of rows; `block_rows`: that share their scales in what it becomes."""
    import torch

    from v4cli.store import formats

    place = places[name]
    form, (rows, width) = OFFICIAL[place.spec.dtype], place.spec.shape
    step = 1 << max(1, BLOCK_VALUES // form.cols(width)).bit_length() - 1
    if form.block_rows > 1:
        step = min(form.block_rows, step)  # rows that share their scales
    step = max(step, block_rows)
    scales = None
    if form.scale:
        where = places[name.removesuffix("weight") + "scale"]
        scales = torch.frombuffer(bytearray().join(_read(where)), dtype=torch.float8_e8m0fnu).view(where.spec.shape)
    dtype = {"F8_E4M3": torch.float8_e4m3fn, "I8": torch.int8, "BF16": torch.bfloat16, "F32": torch.float32}[form.codes]
    for row, data in zip(range(0, rows, step), _read(place, step * (place.spec.nbytes // rows))):
        values = torch.frombuffer(bytearray(data), dtype=dtype).view(-1, width)
        if scales is None:
            yield values.float()
        else:
            first, last = row // form.block_rows, (row + len(values) - 1) // form.block_rows
            yield formats.decode(form.name, values, scales[first : last + 1])
