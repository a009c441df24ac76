"""What the reference remembers of one timeline, in torch tensors.

The fixed-size parts are replaced, not written in place, so a mark of them is a handful of references.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from v4kernels.tree import OVERLAPPED, Attention


class Entries:
    """Growing array of compressed entries (n, dim)."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self.n = 0

    def append(self, rows: Tensor) -> None:
        """Add rows (m, dim)."""
        if not rows.shape[0]:
            return
        end = self.n + rows.shape[0]
        if self._buffer is None:
            self._buffer = rows
        elif end > self._buffer.shape[0]:
            grown = rows.new_empty((max(end, self.n * 3 // 2 + 8), rows.shape[1]))
            grown[: self.n] = self._buffer[: self.n]
            grown[self.n : end] = rows
            self._buffer = grown
        else:
            self._buffer[self.n : end] = rows
        self.n = end

    def view(self) -> Tensor | None:
        """The entries as (n, dim), None while there are none."""
        return self._buffer[: self.n] if self._buffer is not None and self.n else None

    def truncate(self, n: int) -> None:
        """Forget all but the first n entries."""
        self.n = n

    @property
    def nbytes(self) -> int:
        return 0 if self._buffer is None else self._buffer.nbytes


@dataclass
class Pending:
    """Compressor inputs that are still needed. Tensors are fp32 and never written in place."""

    kv: Tensor | None = None  # (m, C) tokens of the unfinished block, m < ratio
    gate: Tensor | None = None  # (m, C)
    previous_kv: Tensor | None = None  # (ratio, C/2) last whole block, overlap compressors only
    previous_gate: Tensor | None = None

    @property
    def nbytes(self) -> int:
        parts = (self.kv, self.gate, self.previous_kv, self.previous_gate)
        return sum(p.nbytes for p in parts if p is not None)


@dataclass
class Part:
    """Entries of one compressor and what the next entry will need."""

    ratio: int
    entries: Entries = field(default_factory=Entries)
    pending: Pending = field(default_factory=Pending)


class Layer:
    """Window latents (<= sliding_window, d), compressed KV (ratio > 0), index keys (ratio 4)."""

    def __init__(self, attn: Attention):
        self.size = attn.window, attn.head_dim
        self.window: Tensor | None = None
        self.main = Part(attn.compressor.ratio) if attn.compressor is not None else None
        self.index = Part(attn.indexer.compressor.ratio) if attn.indexer is not None else None
        self.dims = {"main": attn.head_dim, "index": attn.indexer.compressor.head_dim if attn.indexer else 0}

    def _parts(self) -> dict[str, Part]:
        return {name: part for name, part in (("main", self.main), ("index", self.index)) if part is not None}

    def mark(self, n_tokens: int) -> dict[str, np.ndarray]:
        """The fixed-size parts by name; references only."""
        small = {"window": self.window}
        for name, part in self._parts().items():
            small |= {f"{name}.{key}": value for key, value in vars(part.pending).items()}
        return {name: _array(tensor) for name, tensor in small.items() if tensor is not None}

    def _small(self, n_tokens: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the fixed-size parts after so many tokens."""
        if not n_tokens:
            return {}
        shapes: dict[str, tuple[int, ...]] = {"window": (min(n_tokens, self.size[0]), self.size[1])}
        for name, part in self._parts().items():
            width = self.dims[name] * (2 if part.ratio == OVERLAPPED else 1)
            shapes |= dict.fromkeys((f"{name}.kv", f"{name}.gate"), (n_tokens % part.ratio, width))
            if part.ratio == OVERLAPPED <= n_tokens:
                previous = (part.ratio, self.dims[name])
                shapes |= {f"{name}.previous_kv": previous, f"{name}.previous_gate": previous}
        return shapes

    def restore(self, mark: dict[str, np.ndarray], n_tokens: int) -> None:
        """Be at n_tokens again. ValueError if the mark is not of such a layer and place."""
        _check(mark, self._small(n_tokens))
        tensors = {name: _tensor(array) for name, array in mark.items()}
        self.window = tensors.get("window")
        for name, part in self._parts().items():
            part.pending = Pending(**{key: tensors.get(f"{name}.{key}") for key in vars(part.pending)})
            part.entries.truncate(n_tokens // part.ratio)

    def reserve(self, n_tokens: int) -> None:
        """Nothing: tensors grow as entries come."""

    def entries(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Views of the entries of tokens [first, last), whole blocks of every ratio, by name."""
        found = {}
        for name, part in self._parts().items():
            rows = part.entries.view()
            if rows is not None:
                found[f"{name}.entries"] = _array(rows[first // part.ratio : last // part.ratio])
        return found

    def put(self, first: int, last: int, entries: dict[str, np.ndarray]) -> None:
        """Write what `entries(first, last)` gave elsewhere. ValueError if it does not fit."""
        shapes = {
            f"{name}.entries": (last // part.ratio - first // part.ratio, self.dims[name])
            for name, part in self._parts().items()
        }
        _check(entries, {name: shape for name, shape in shapes.items() if shape[0]})
        for name, part in self._parts().items():
            part.entries.truncate(first // part.ratio)
            if f"{name}.entries" in entries:
                with torch.inference_mode():  # in which the buffer may have been made, and can be written
                    part.entries.append(_tensor(entries[f"{name}.entries"].copy()))

    def finite(self, arrays: dict[str, np.ndarray]) -> bool:
        """Whether what `entries` or `mark` gave elsewhere is finite."""
        return all(bool(_tensor(array).isfinite().all()) for array in arrays.values())

    @property
    def nbytes(self) -> int:
        window = 0 if self.window is None else self.window.nbytes
        return window + sum(part.entries.nbytes + part.pending.nbytes for part in self._parts().values())


class Timeline:
    """All layers of one timeline."""

    spare = 0

    def __init__(self, attentions: Sequence[Attention]):
        self.layers = [Layer(attn) for attn in attentions]


def _check(arrays: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]) -> None:
    """ValueError unless these are arrays of such names and shapes; empty entries may be there or not."""
    found = {name: array.shape for name, array in arrays.items() if array.size or name in shapes}
    if found != shapes or any(array.dtype not in (np.float32, np.int16) for array in arrays.values()):
        raise ValueError("arrays of another shape")


def _array(tensor: Tensor) -> np.ndarray:
    """The same memory in numpy, which has no bf16: its bits as int16 then."""
    return tensor.view(torch.int16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _tensor(array: np.ndarray) -> Tensor:
    """What `_array` was given."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.int16 else tensor
