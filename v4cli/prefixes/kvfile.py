"""Files of cached tensors: safetensors with a checksum over every byte.

The header's metadata holds `format`, `about` (JSON: what the arrays are) and `crc32`, in eight hexadecimal digits, of
the whole file with zeros in their place. Against accidents: bits that tip, blocks that got lost. Not against forgers.
"""

import contextlib
import json
import math
import os
import struct
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from v4cli import files, jsonfile
from v4cli.errors import SnapshotError

FORMAT = "v4cli kv 2"  # the number counts up when older files can no longer be read
MARK, ZEROS = b'"crc32":"', b"00000000"
DTYPES = {"U8": np.uint8, "I16": np.int16, "I32": np.int32, "F32": np.float32}
MAX_HEADER = 1 << 24
MAX_BYTES = 1 << 28  # of a file; a chunk of Pro takes 5 MB, in fp32 16 times as much


def encoded(arrays: dict[str, np.ndarray], about: dict) -> bytearray:
    """The file of these arrays, of DTYPES."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    data = bytearray(save(arrays, {"format": FORMAT, "about": json.dumps(about), "crc32": ZEROS.decode()}))
    at = _checksum_at(data)
    data[at : at + 8] = b"%08x" % _checksum(data, at)
    return data


def read(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """What was encoded: about and arrays. SnapshotError names the file if a byte is not as it was written."""
    return decoded(contents(path), path)


def contents(path: Path) -> bytearray:
    """All bytes of a file, unchecked; to be written to, unlike bytes, so that arrays can. SnapshotError."""
    with _opened(path) as file, _named(path):
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise ValueError(f"{size} bytes are too many")
        data = bytearray(size)
        file.readinto(data)
        return data


def decoded(data: bytearray, path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """The same of a file's bytes; the arrays are views of them. `path` names it in errors."""
    with _named(path):
        at = _checksum_at(data)
        if data[at : at + 8] != b"%08x" % _checksum(data, at):
            raise ValueError("its checksum differs")
        header = _header(data)
        about = _about(header.pop("__metadata__"))
        return about, {name: _array(data, entry) for name, entry in header.items()}


def read_about(path: Path) -> dict:
    """What the file says of itself; its data is not read and not checked."""
    with _opened(path) as file, _named(path):
        start = file.read(8)
        return _about(_header(start + file.read(min(_length(start), MAX_HEADER)))["__metadata__"])


def _opened(path: Path) -> BufferedReader:
    """A file of ours, and no link to another. SnapshotError."""
    try:
        return files.open_regular(path, SnapshotError, follow=False)
    except SnapshotError as error:
        raise SnapshotError(str(error), path) from None


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """What is wrong with a file as SnapshotError that names it."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, OverflowError, struct.error) as error:
        raise SnapshotError(f"{path}: corrupt ({error})", path) from None


def _length(data: bytes | bytearray) -> int:
    return struct.unpack_from("<Q", data)[0]


def _header(data: bytes | bytearray) -> dict:
    header = _parsed(bytes(data[8 : 8 + min(_length(data), MAX_HEADER)]))
    written = header["__metadata__"]["format"]
    if written != FORMAT:
        raise ValueError(f"of another version, {jsonfile.shown(written)}")
    return header


def _about(metadata: dict) -> dict:
    about = _parsed(metadata["about"])
    if not isinstance(about, dict):
        raise ValueError("it says nothing of itself")
    return about


def _parsed(text: str | bytes) -> Any:
    try:
        return jsonfile.parse(text, "header", SnapshotError)
    except SnapshotError as error:
        raise ValueError(str(error)) from None


def _array(data: bytearray, entry: dict) -> np.ndarray:
    """A view of one tensor."""
    first, last = entry["data_offsets"]
    shape, dtype, start = entry["shape"], np.dtype(DTYPES[entry["dtype"]]), 8 + _length(data)
    if not all(isinstance(n, int) and n >= 0 for n in (first, last, *shape)):
        raise ValueError("a tensor of impossible sizes")
    if last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError("a tensor of another size than its shape")
    return np.frombuffer(data, dtype, math.prod(shape), start + first).reshape(shape)


def _checksum_at(data: bytearray) -> int:
    """Place of the digits. ValueError if there are none."""
    return data.index(MARK, 8, 8 + min(_length(data), MAX_HEADER)) + len(MARK)


def _checksum(data: bytearray, at: int) -> int:
    rest = memoryview(data)[at + 8 :]
    return zlib.crc32(rest, zlib.crc32(ZEROS, zlib.crc32(memoryview(data)[:at])))
