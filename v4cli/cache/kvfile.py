"""Files of cached tensors: safetensors with a checksum over every byte.

The header's metadata holds `format`, `about` (JSON: what the arrays are) and `crc32`, in eight hexadecimal digits, of
the whole file with zeros in their place. Against accidents: bits that tip, blocks that got lost. Not against forgers.
"""

import json
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from v4cli.errors import SnapshotError

FORMAT = "v4cli kv 2"  # the number counts up when older files can no longer be read
MARK, ZEROS = b'"crc32":"', b"00000000"
DTYPES = {"U8": np.uint8, "I16": np.int16, "F32": np.float32}
MAX_HEADER = 1 << 24


def encoded(arrays: dict[str, np.ndarray], about: dict) -> bytearray:
    """The file of these arrays, of DTYPES."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    data = bytearray(save(arrays, {"format": FORMAT, "about": json.dumps(about), "crc32": ZEROS.decode()}))
    at = _checksum_at(data)
    data[at : at + 8] = b"%08x" % _checksum(data, at)
    return data


def read(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """What was encoded: about and arrays. SnapshotError names the file if a byte is not as it was written."""
    try:
        with path.open("rb") as file:
            data = bytearray(path.stat().st_size)  # not bytes: the arrays can be written to
            file.readinto(data)
        at = _checksum_at(data)
        if data[at : at + 8] != b"%08x" % _checksum(data, at):
            raise SnapshotError(f"{path}: corrupt (its checksum differs)", path)
        header = _header(path, data)
        about = json.loads(header.pop("__metadata__")["about"])
        return about, {name: _array(data, entry) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise _unusable(path, error) from None


def read_about(path: Path) -> dict:
    """What the file says of itself; its data is not read and not checked."""
    try:
        with path.open("rb") as file:
            data = file.read(8)
            data += file.read(min(_length(data), MAX_HEADER))
        return json.loads(_header(path, data)["__metadata__"]["about"])
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise _unusable(path, error) from None


def _length(data) -> int:
    return struct.unpack_from("<Q", data)[0]


def _header(path: Path, data) -> dict:
    header = json.loads(bytes(data[8 : 8 + _length(data)]))
    written = header["__metadata__"]["format"]
    if written != FORMAT:
        raise SnapshotError(f"{path}: not a file of this version ({written!r})", path)
    return header


def _array(data: bytearray, entry: dict) -> np.ndarray:
    """A view of one tensor."""
    first, last = entry["data_offsets"]
    shape, dtype, start = entry["shape"], np.dtype(DTYPES[entry["dtype"]]), 8 + _length(data)
    if last - first != math.prod(shape) * dtype.itemsize or first < 0:
        raise ValueError("a tensor of another size than its shape")
    return np.frombuffer(data, dtype, math.prod(shape), start + first).reshape(shape)


def _checksum_at(data) -> int:
    """Place of the digits. ValueError if there are none."""
    return data.index(MARK, 8, 8 + min(_length(data), MAX_HEADER)) + len(MARK)


def _checksum(data, at: int) -> int:
    rest = memoryview(data)[at + 8 :]
    return zlib.crc32(rest, zlib.crc32(ZEROS, zlib.crc32(memoryview(data)[:at])))


def _unusable(path: Path, error: Exception) -> SnapshotError:
    if isinstance(error, FileNotFoundError):
        return SnapshotError(f"{path}: missing", path)
    return SnapshotError(f"{path}: corrupt ({error})", path)
