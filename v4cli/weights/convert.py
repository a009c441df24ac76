"""Turn official tensors into one part of a store: stream, quantize, checksum, write whole or not at all.

Memory is bounded by BLOCK_VALUES whatever the tensor; files are read with plain reads (a mapping would count every
page as resident).
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from v4cli.errors import ModelError
from v4cli.weights.recipe import tensor_class
from v4cli.weights.safetensors_header import TensorPlace
from v4cli.weights.store import Part, Stored, sync_folder

BLOCK_VALUES = 1 << 20  # quantized together: 4 MiB in fp32, so that a block stays in cache
COPY_BYTES = 4 << 20


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
        writer.write(part.header)
        for chunk in _chunks(part, places, errors):
            writer.write(chunk)
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


class _Writer:
    """Sequential file writing with a running checksum."""

    def __init__(self, path: Path, on_bytes):
        self.path, self.on_bytes = path, on_bytes
        self.file = path.open("wb")
        self.digest = hashlib.sha256()
        self.position = 0

    def write(self, data) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.position += len(data)
        self.on_bytes(len(data))

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
            yield from _read(places[name])
        elif stored.format == "keep":
            raise ModelError(f"{part.name}: the source has no tensor {name} of the right kind")
        else:
            collected: list[bytes] = []
            for codes, scale in _quantized(stored, places, errors):
                collected.append(scale)
                yield codes
            scales[name.removesuffix("weight") + "scale"] = b"".join(collected)


def _read(place: TensorPlace, start: int = 0, length: int | None = None) -> Iterator[bytes]:
    """Bytes of a tensor, in pieces."""
    left = place.spec.nbytes - start if length is None else length
    with place.path.open("rb", buffering=0) as file:
        file.seek(place.offset + start)
        while left:
            data = file.read(min(left, COPY_BYTES))
            if not data:
                raise ModelError(f"{place.path}: ends too soon; the file changed while in use")
            left -= len(data)
            yield data


def _quantized(stored: Stored, places: Mapping[str, TensorPlace], errors: dict) -> Iterator[tuple[bytes, bytes]]:
    """Codes and scales of a matrix, block of rows by block of rows."""
    import torch

    from v4cli.weights import formats

    encode = {"int8": formats.encode_int8, "int4": formats.encode_int4}[stored.format]
    decode = {"int8": formats.decode_int8, "int4": formats.decode_int4}[stored.format]
    place = places[stored.source]
    totals = errors.setdefault(tensor_class(stored.source, place.spec.dtype), [0.0, 0.0])
    rows, cols = place.spec.shape
    step = max(1, BLOCK_VALUES // cols // formats.BLOCK) * formats.BLOCK  # whole FP8 blocks
    for row in range(0, rows, step):
        values = _dense_rows(stored.source, places, row, min(step, rows - row))
        if not values.isfinite().all():
            raise ModelError(f"{place.path}: tensor {stored.source} holds values that are not finite")
        codes, scale = encode(values)
        totals[0] += float((decode(codes, scale) - values).square().sum(dtype=torch.float64))
        totals[1] += float(values.square().sum(dtype=torch.float64))
        yield codes.numpy().tobytes(), scale.view(torch.int16).numpy().tobytes()


def _dense_rows(name: str, places: Mapping[str, TensorPlace], row: int, count: int):
    """Rows of an official FP8 or BF16 matrix in fp32."""
    import torch

    from v4cli.weights import formats

    place = places[name]
    width = place.spec.nbytes // place.spec.shape[0]
    dtype = {"F8_E4M3": torch.float8_e4m3fn, "BF16": torch.bfloat16}[place.spec.dtype]
    data = bytearray().join(_read(place, row * width, count * width))
    values = torch.frombuffer(data, dtype=dtype).view(count, -1)
    if place.spec.dtype == "BF16":
        return values.float()
    scales = places[name.removesuffix("weight") + "scale"]
    blocks, per_row = formats.BLOCK, scales.spec.shape[1]
    needed = -(-count // blocks) * per_row
    raw = bytearray().join(_read(scales, row // blocks * per_row, needed))
    scale = torch.frombuffer(raw, dtype=torch.float8_e8m0fnu).view(-1, per_row)
    return formats.decode_fp8(values, scale)
