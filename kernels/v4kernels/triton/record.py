"""What the host says to a step: the lines of its rows, and all that it computes for them.

Two blocks of memory of one layout, one of the host that the device sees, one of the device: the first node of a step
moves the first to the second. Fields lie one behind the other, each at a multiple of device.ALIGN.
"""

import ctypes
from collections.abc import Sequence

import numpy as np

from v4kernels import native
from v4kernels.api import Span
from v4kernels.cpu.bound import PackedTree, pointer
from v4kernels.triton.lines import LINE
from v4kernels.triton.memory import Buffer, Memory, aligned
from v4kernels.triton.state import DeviceTimeline

Field = tuple[str, int]  # a name, and the layer or compression ratio that it is of


class StepRecord:
    """For up to `most` rows. Of N rows there are

    lines [N, 4] int64: see lines.py     numbers [N] int64: 0, 1, ...     embedded [N, D] fp32
    hashed [N, top_k] int64, by layer: experts by token
    turns [N, ROPE] fp32, by ratio: cos, sin of the rows' positions
    entry_turns [N, ROPE] fp32, by ratio: of the first position of the block that a row completes
    """

    def __init__(self, memory: Memory, tree: PackedTree, most: int):
        """MemoryError."""
        self.memory, self.tree, self.most = memory, tree, most
        self.freqs = {layer.attn.ratio: layer.attn.freqs for layer in tree.layers}
        self.hashed = {i: layer.ffn.tid2eid for i, layer in enumerate(tree.layers) if layer.ffn.tid2eid is not None}
        self.fields = self._fields()
        self._host = memory.take(self._laid_out(most), hosted=True)
        self._device = memory.take(self._host.n_bytes)
        self.rows = 0

    def _fields(self) -> dict[Field, tuple[int, type]]:
        """Width and type of each field's rows."""
        fields: dict[Field, tuple[int, type]] = {
            ("lines", 0): (LINE.value, np.int64),
            ("numbers", 0): (1, np.int64),
            ("embedded", 0): (self.tree.embed.matrix.cols, np.float32),
        }
        fields |= {("hashed", i): (table.shape[1], np.int64) for i, table in self.hashed.items()}
        fields |= {("turns", ratio): (2 * len(f), np.float32) for ratio, f in self.freqs.items()}
        return fields | {("entry_turns", ratio): (2 * len(f), np.float32) for ratio, f in self.freqs.items() if ratio}

    def _laid_out(self, rows: int) -> int:
        """Lay fields out for so many rows: bytes of all."""
        self._offsets, end = {}, 0
        for name, (width, dtype) in self.fields.items():
            self._offsets[name] = end
            end += aligned(rows * width * np.dtype(dtype).itemsize)
        return end

    def at(self, name: str, of: int = 0) -> Buffer:
        """A field on the device."""
        width, dtype = self.fields[name, of]
        return Buffer(self._device.at + self._offsets[name, of], self.rows, width, dtype)

    def _on_host(self, name: str, of: int = 0) -> np.ndarray:
        """[N, width], to be written."""
        (width, dtype), offset = self.fields[name, of], self._offsets[name, of]
        assert self._host.host is not None
        some = self._host.host[offset : offset + self.rows * width * np.dtype(dtype).itemsize]
        return some.view(dtype).reshape(self.rows, width)

    def fill(self, spans: Sequence[Span[DeviceTimeline]], ids: np.ndarray) -> None:
        """Say all of a step of these spans, whose tokens are ids [N] int64. No step that reads the record is under
        way."""
        self.rows = len(ids)
        self.n_bytes = self._laid_out(self.rows)
        self._on_host("numbers")[:, 0] = np.arange(self.rows)
        self._embed(ids)
        for layer, table in self.hashed.items():
            self._on_host("hashed", layer)[:] = table[ids]
        row = 0
        for span in spans:
            self._say(span, row)
            row += len(span.ids)

    def _embed(self, ids: np.ndarray) -> None:
        out, table = self._on_host("embedded"), self.tree.embed.matrix
        call = native.library().v4k_embed
        native.checked(call(ctypes.addressof(table), pointer(ids), len(ids), 1, pointer(out)))

    def _say(self, span: Span[DeviceTimeline], row: int) -> None:
        """The lines and rotations of a span whose first row is `row`."""
        n, start = len(span.ids), span.start
        lines, i = self._on_host("lines")[row : row + n], np.arange(n)
        lines[:, 0], lines[:, 1], lines[:, 2], lines[:, 3] = span.state.table.at, start + i, i, n - 1 - i
        for ratio, freqs in self.freqs.items():
            rotations(freqs, start, 1, self._on_host("turns", ratio)[row : row + n])
            blocks = (start + n) // ratio - start // ratio if ratio else 0
            if blocks:
                first = start // ratio * ratio  # position of the first block that is completed
                made = np.empty((blocks, 2 * len(freqs)), np.float32)
                rotations(freqs, first, ratio, made)
                self._on_host("entry_turns", ratio)[row : row + n][first + ratio - 1 - start :: ratio] = made

    def start(self) -> None:
        """The first node of a step."""
        self.memory.device.move(self._device.at, self._host.at, self.n_bytes)

    @property
    def nbytes(self) -> int:
        """Bytes of device memory, and as many of the host's."""
        return aligned(self._device.n_bytes)


def rotations(freqs: np.ndarray, start: int, step: int, out: np.ndarray) -> None:
    """out [n, ROPE] = cos and sin of positions start, start + step, ..."""
    call = native.library().v4k_rotations
    native.checked(call(pointer(freqs), len(freqs), start, step, len(out), pointer(out)))
