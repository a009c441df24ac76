"""What a timeline remembers, in device memory: the arrays of cpu/state.py, with the same names, shapes and bytes.

Kernels find them by a table of addresses (lines.py), so that they may grow: a larger block, what was there moved to it,
the table written anew. Entries that an indexer chooses from may lie in memory of the host that the device sees: a token
reads few of them. Of index keys, and of entries without an indexer, it reads all.
"""

from collections.abc import Sequence

import numpy as np

from v4kernels import native
from v4kernels.cpu.bound import PackedAttention, PackedCompressor
from v4kernels.cpu.state import finite_arrays, kinds
from v4kernels.native import SPARE_ROWS
from v4kernels.tree import OVERLAPPED
from v4kernels.triton import lines
from v4kernels.triton.memory import Block, Memory, aligned

LEAST_ROOM = 64  # entries


class Table:
    """int64 [layers, 8] of addresses, on the host and at `at` on the device."""

    def __init__(self, memory: Memory, n_layers: int):
        self._memory, self._addresses = memory, np.zeros((n_layers, lines.PARTS.value), np.int64)
        self._block = memory.take(self._addresses.nbytes)
        self.at = self._block.at

    def say(self, layer: int, addresses: dict[int, int]) -> None:
        """Where parts of a layer are, from the launches that come on."""
        for part, address in addresses.items():
            self._addresses[layer, part] = address
        row = self._addresses[layer]
        self._memory.write(self._block, layer * row.nbytes, row)


class DeviceEntries:
    """What one compressor keeps: tails [slots, C] fp32 of kv and gate by position, and entries that grow."""

    def __init__(self, compressor: PackedCompressor, most_tokens: int, memory: Memory, hosted: bool):
        self.memory, self.ratio, self.hosted = memory, compressor.ratio, hosted
        self._overlap = self.ratio == OVERLAPPED
        width = compressor.head_dim * (2 if self._overlap else 1)
        self.slots = self.ratio * (2 if self._overlap else 1) + SPARE_ROWS
        self.tails = [memory.take(4 * self.slots * width) for _ in range(2)]
        self._shape = self.slots, width
        dims, rope = compressor.head_dim, compressor.rope_dims
        self.is_index = compressor.is_index
        if self.is_index:
            self.widths = dict(zip(("entries", "scales"), native.key_bytes(dims)))
        else:
            self.widths = {"entries": native.entry_bytes(dims, rope)}
        self.most = most_tokens // self.ratio
        self.room = 0  # entries that may be written
        self.rows: dict[str, Block] = {}

    @property
    def addresses(self) -> dict[int, int]:
        """By part of a table."""
        tail = lines.KEY_TAIL_KV if self.is_index else lines.TAIL_KV
        entries = lines.KEYS if self.is_index else lines.ENTRIES
        said = {tail.value + i: block.at for i, block in enumerate(self.tails)}
        return said | {entries.value + i: block.at for i, block in enumerate(self.rows.values())}

    def reserve(self, n_tokens: int) -> bool:
        """Room for the entries of the first n_tokens tokens; whether they lie elsewhere now. MemoryError."""
        need = n_tokens // self.ratio
        if need <= self.room:
            return False
        if need > self.most:
            raise MemoryError(f"the context is full: {need} entries, there is room for {self.most}")
        room = min(max(need, self.room * 3 // 2, LEAST_ROOM), self.most)
        larger = {name: self.memory.take(room * width, self.hosted) for name, width in self.widths.items()}
        for name, block in self.rows.items():
            self.memory.device.move(larger[name].at, block.at, self.room * self.widths[name])
        self.rows, self.room = larger, room
        return True

    def tail(self, n_tokens: int) -> np.ndarray:
        """Slots in use at n_tokens, in the order of their positions: of the unfinished block, and of the one before."""
        first = max(0, (n_tokens // self.ratio - self._overlap) * self.ratio)
        return np.arange(first, n_tokens) % self.slots

    def read_tails(self) -> np.ndarray:
        """A copy (2, slots, C)."""
        both = [self.memory.read(block, 0, block.n_bytes).view(np.float32) for block in self.tails]
        return np.stack([one.reshape(self._shape) for one in both])

    def write_tails(self, tails: np.ndarray) -> None:
        for block, array in zip(self.tails, tails):
            self.memory.write(block, 0, array)

    def read(self, name: str, first: int, last: int) -> np.ndarray:
        """A copy of entries [first, last) (n, bytes)."""
        width = self.widths[name]
        if first >= last:
            return np.empty((0, width), np.uint8)
        return self.memory.read(self.rows[name], first * width, (last - first) * width).reshape(-1, width)

    def write(self, name: str, first: int, entries: np.ndarray) -> None:
        if len(entries):
            self.memory.write(self.rows[name], first * self.widths[name], entries)

    @property
    def nbytes(self) -> int:
        return sum(aligned(block.n_bytes) for block in (*self.tails, *self.rows.values()))


class DeviceLayer:
    """Window ring (window + SPARE_ROWS, entry bytes), compressed entries (ratio > 0), index keys (ratio 4)."""

    def __init__(
        self, attn: PackedAttention, most_tokens: int, memory: Memory, table: Table, number: int, hosted: bool
    ):
        self.memory, self._table, self._number = memory, table, number
        self.window, self.dims = attn.window, (attn.head_dim, attn.rope_dims)
        self._shape = attn.window + SPARE_ROWS, native.entry_bytes(attn.head_dim, attn.rope_dims)
        self._ring = memory.take(self._shape[0] * self._shape[1])
        self.parts: dict[str, DeviceEntries] = {}
        if attn.compressor is not None:
            chosen = attn.indexer is not None
            self.parts["main"] = DeviceEntries(attn.compressor, most_tokens, memory, hosted and chosen)
        if attn.indexer is not None:
            self.parts["index"] = DeviceEntries(attn.indexer.compressor, most_tokens, memory, hosted=False)
        self._say()

    def _say(self) -> None:
        said = {lines.RING.value: self._ring.at}
        for part in self.parts.values():
            said |= part.addresses
        self._table.say(self._number, said)

    def _latest(self, n_tokens: int) -> np.ndarray:
        """Rows of the window at n_tokens, in the order of their positions."""
        return np.arange(max(0, n_tokens - self.window), n_tokens) % self._shape[0]

    def _read_ring(self) -> np.ndarray:
        return self.memory.read(self._ring, 0, self._ring.n_bytes).reshape(self._shape)

    def mark(self, n_tokens: int) -> dict[str, np.ndarray]:
        """Copies of windows (n, bytes) and tails (2, n, C) by name, in the order of positions."""
        with self.memory.lock:
            window = self._read_ring()[self._latest(n_tokens)]
            tails = {name: part.read_tails()[:, part.tail(n_tokens)] for name, part in self.parts.items()}
        return {"window": window} | {f"{name}.tail": tail for name, tail in tails.items()}

    def restore(self, mark: dict[str, np.ndarray], n_tokens: int) -> None:
        """Be at n_tokens again. ValueError if the mark is not of such a layer and place."""
        with self.memory.lock:
            if kinds(mark) != kinds(self.mark(n_tokens)):
                raise ValueError("arrays of another shape")
            ring = self._read_ring()
            ring[self._latest(n_tokens)] = mark["window"]
            self.memory.write(self._ring, 0, ring)
            for name, part in self.parts.items():
                tails = part.read_tails()
                tails[:, part.tail(n_tokens)] = mark[f"{name}.tail"]
                part.write_tails(tails)

    def reserve(self, n_tokens: int) -> None:
        """Room for the entries of the first n_tokens tokens. MemoryError."""
        with self.memory.lock:
            moved = False
            try:
                for part in self.parts.values():
                    moved |= part.reserve(n_tokens)
            finally:
                if moved:
                    self._say()

    def entries(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Copies of the entries of tokens [first, last), whole blocks of every ratio, by name."""
        with self.memory.lock:
            return {
                f"{name}.{kind}": part.read(kind, first // part.ratio, last // part.ratio)
                for name, part in self.parts.items()
                for kind in part.widths
            }

    def put(self, first: int, last: int, entries: dict[str, np.ndarray]) -> None:
        """Write what `entries(first, last)` gave elsewhere. ValueError if it does not fit."""
        with self.memory.lock:
            self.reserve(last)
            wanted = {
                f"{name}.{kind}": ((last // part.ratio - first // part.ratio, width), np.dtype(np.uint8))
                for name, part in self.parts.items()
                for kind, width in part.widths.items()
            }
            if kinds(entries) != wanted:
                raise ValueError("arrays of another shape")
            for name, part in self.parts.items():
                for kind in part.widths:
                    part.write(kind, first // part.ratio, entries[f"{name}.{kind}"])

    def finite(self, arrays: dict[str, np.ndarray]) -> bool:
        """Whether what `entries` or `mark` gave elsewhere is finite."""
        return finite_arrays(arrays, *self.dims)

    @property
    def nbytes(self) -> int:
        return aligned(self._ring.n_bytes) + sum(part.nbytes for part in self.parts.values())

    @property
    def hosted_nbytes(self) -> int:
        """Of these, in memory of the host."""
        parts = [part for part in self.parts.values() if part.hosted]
        return sum(aligned(block.n_bytes) for part in parts for block in part.rows.values())


class DeviceTimeline:
    """All layers of one timeline."""

    spare = SPARE_ROWS

    def __init__(self, attentions: Sequence[PackedAttention], most_tokens: int, memory: Memory, hosted: bool = False):
        """`hosted`: entries that an indexer chooses from lie in memory of the host. MemoryError without room."""
        with memory.lock:
            self.table = Table(memory, len(attentions))
            self.layers = [
                DeviceLayer(attn, most_tokens, memory, self.table, number, hosted)
                for number, attn in enumerate(attentions)
            ]
