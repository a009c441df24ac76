"""Turn official tensors into one part of a store: stream, quantize, checksum, write whole or not at all.

The caller's thread reads and quantizes while another checksums and writes the piece before. Memory is bounded by
BLOCK_VALUES whatever the tensor; files are read with plain reads (a mapping would count every page as resident).
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from v4kernels.formats import FORMATS, OFFICIAL, finite

from v4cli.errors import ModelError
from v4cli.files import sync_folder
from v4cli.store.header import TensorPlace
from v4cli.store.recipe import tensor_class
from v4cli.store.store import Part, Stored

BLOCK_VALUES = 1 << 18  # quantized together: 1 MiB in fp32; larger temporaries cost more in page faults than in sums
COPY_BYTES = 4 << 20
FLUSH_BYTES = 64 << 20  # written between two requests that the system send it to the disk


def convert_part(
    part: Part,
    places: Mapping[str, TensorPlace],
    out: Path,
    on_bytes: Callable[[int], None] = lambda n: None,
) -> dict:
    """Write `part` to file `out` from official tensors at `places`; returns its record for the manifest.

    The record holds bytes, sha256 and errors: class of tensor -> relative root mean square error of quantization,
    as [sum of squared errors, sum of squares]. A tensor whose place already has the stored spec is copied, which is
    how a store of another layout is repacked. ModelError for values that are not finite or files that end too soon.
    """
    temporary = out.with_name(out.name + ".tmp")
    writer = _Writer(temporary, on_bytes)
    errors: dict[str, list[float]] = {}
    try:
        _write_behind(writer, part.header, _chunks(part, places, errors))
        if writer.position != part.n_bytes:
            raise AssertionError(f"{part.name}: {writer.position} bytes written, {part.n_bytes} laid out")
        record = writer.finish()
    except BaseException:
        writer.abandon()
        raise
    os.replace(temporary, out)
    sync_folder(out.parent)
    if errors:
        record["errors"] = {k: [float(f"{v:.6e}") for v in pair] for k, pair in sorted(errors.items())}
    return record


def _write_behind(writer: "_Writer", header: bytes, chunks: Iterator[bytes]) -> None:
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


def _chunks(part: Part, places: Mapping[str, TensorPlace], errors: dict) -> Iterator[bytes]:
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
        elif stored.source not in places or stored.format not in FORMATS or not FORMATS[stored.format].packed:
            raise ModelError(f"{part.name}: the source has no tensor {name} of the right kind")
        else:
            collected: list[bytes] = []
            for codes, scale in _quantized(stored, places, errors):
                collected.append(scale)
                yield codes
            scales[name.removesuffix("weight") + "scale"] = b"".join(collected)


def _read(place: TensorPlace, piece: int = COPY_BYTES) -> Iterator[bytes]:
    """Bytes of a tensor, in pieces of that many; the last may be shorter."""
    left = place.spec.nbytes
    with place.path.open("rb") as file:
        file.seek(place.offset)
        while left:
            data = file.read(min(left, piece))
            if len(data) < min(left, piece):
                raise ModelError(f"{place.path}: ends too soon; the file changed while in use")
            left -= len(data)
            yield data


def _finite(stored: Stored, data: bytes) -> bool:
    """Whether values kept as they are, and scales, are finite."""
    import numpy as np

    return finite(stored.spec.dtype, np.frombuffer(data, np.uint8))


def _quantized(stored: Stored, places: Mapping[str, TensorPlace], errors: dict) -> Iterator[tuple[bytes, bytes]]:
    """Codes and scales of a matrix, block of rows by block of rows."""
    import torch

    from v4cli.store import formats

    encode, decode = formats.ENCODE[stored.format], formats.DECODE[stored.format]
    place = places[stored.source]
    totals = errors.setdefault(tensor_class(stored.source, place.spec.dtype), [0.0, 0.0])
    for values in _dense_blocks(stored.source, places):
        codes, scale = encode(values)
        if not scale.float().isfinite().all():  # as it is if any value of its group is not
            raise ModelError(f"{place.path}: tensor {stored.source} holds values that are not finite")
        totals[0] += float(decode(codes, scale).sub_(values).square_().sum(dtype=torch.float64))
        totals[1] += float(values.square().sum(dtype=torch.float64))
        yield codes.numpy().tobytes(), scale.view(torch.uint8).numpy().tobytes()


def _dense_blocks(name: str, places: Mapping[str, TensorPlace]) -> Iterator:
    """An official matrix in fp32, block of rows by block of rows."""
    import torch

    from v4cli.store import formats

    place = places[name]
    form, (rows, width) = OFFICIAL[place.spec.dtype], place.spec.shape
    step = 1 << max(1, BLOCK_VALUES // form.cols(width)).bit_length() - 1
    if form.block_rows > 1:
        step = min(form.block_rows, step)  # rows that share their scales
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
            yield formats.DECODE[form.name](values, scales[first : last + 1])
