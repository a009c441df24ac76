"""Files of cached tensors: safetensors with a checksum over everything.

The metadata holds `about` (JSON: what the arrays are) and `sha256` of that text and of every array by name.
"""

import contextlib
import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from v4cli.errors import SnapshotError

FORMAT = "v4cli kv 1"  # the number counts up when older files can no longer be read


def encoded(arrays: dict[str, np.ndarray], about: dict) -> bytes:
    """The file of these arrays."""
    text = json.dumps(about)
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(arrays, {"format": FORMAT, "about": text, "sha256": _digest(text, arrays)})


def read(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """What was written: about and arrays. SnapshotError names the file if a byte is not as it was written."""
    with _opened(path) as file:
        text, digest = _metadata(path, file)
        arrays = {name: file.get_tensor(name) for name in file.keys()}
    if _digest(text, arrays) != digest:
        raise SnapshotError(f"{path}: corrupt (its checksum differs)", path)
    return json.loads(text), arrays


def read_about(path: Path) -> dict:
    """What the file says of itself; its data is not read and not checked."""
    with _opened(path) as file:
        return json.loads(_metadata(path, file)[0])


@contextlib.contextmanager
def _opened(path: Path):
    try:
        with safe_open(path, "numpy") as file:
            yield file
    except FileNotFoundError:
        raise SnapshotError(f"{path}: missing", path) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise SnapshotError(f"{path}: corrupt ({error})", path) from None


def _metadata(path: Path, file) -> tuple[str, str]:
    found = file.metadata() or {}
    if found.get("format") != FORMAT:
        raise SnapshotError(f"{path}: not a file of this version ({found.get('format', 'no format')!r})", path)
    return found.get("about", "{}"), found.get("sha256", "")


def _digest(text: str, arrays: dict[str, np.ndarray]) -> str:
    """sha256 of the text and of names, dtypes, shapes and bytes of the arrays, sorted by name."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()
