"""Experts as they lie in a store's files, and reading them past the page cache.

Whole experts are read into aligned memory without the system's cache, or, where the file system refuses that, through
it, and it is told to forget them. A file that changes while it is open is noticed at the next read.
"""

import errno
import mmap
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from v4kernels.formats import Format
from v4kernels.system import RawFile, Room, committed

from v4cli.errors import ModelError
from v4cli.model.schema import TensorSpec
from v4cli.store.parts import EXPERT_ORDER, PAGE
from v4cli.store.store import Store

SLOT = max(PAGE, mmap.PAGESIZE)  # one begins at a page, of the files and of memory
MATRICES = ("w1", "w3", "w2")


class File:
    """One open file. Reads may run in several threads."""

    def __init__(self, path: Path):
        """ModelError if it cannot be opened."""
        self.path, self.direct = path, True
        self._giving_up = threading.Lock()
        self._open: list[RawFile] = []  # the last one is read from
        try:
            try:
                self._open.append(RawFile(path, True))
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._give_up_direct()
            self._before = self._open[-1].identity()
        except OSError as error:
            raise self._unreadable(error) from None

    def read_into(self, target: memoryview, offset: int, n_bytes: int) -> None:
        """Bytes from `offset`, a multiple of PAGE, into the beginning of page-aligned `target`, which has room for
        n_bytes rounded up to PAGE. ModelError if they cannot be read, or the file is not what it was when opened."""
        done, direct, room = 0, self.direct, target[: -(-n_bytes // PAGE) * PAGE]
        while done < n_bytes:
            try:
                try:
                    count = self.pread(room[done:], offset + done)
                except OSError as error:
                    if error.errno != errno.EINVAL or not direct:
                        raise
                    self._give_up_direct()
                    direct, done = False, 0
                    continue
            except OSError as error:
                raise self._unreadable(error) from None
            if count == 0:
                raise ModelError(f"{self.path}: cut off; the file changed while in use", "open the model again")
            done += count
            if direct and done < n_bytes:
                done -= done % PAGE  # a short read: direct ones go on at whole pages
        if self._open[-1].identity() != self._before:
            raise ModelError(f"{self.path}: the file changed while in use", "open the model again")
        if not direct:
            self._open[-1].forget(offset, n_bytes)

    def pread(self, target: memoryview, offset: int) -> int:
        """One read, which may be short: its bytes. OSError."""
        return self._open[-1].read(target, offset)

    def _give_up_direct(self) -> None:
        """The same file through the cache. Other threads may be reading: what they read from stays open. OSError."""
        with self._giving_up:
            if self.direct:
                self._open.append(RawFile(self.path, False))
                self.direct = False

    def _unreadable(self, error: OSError) -> ModelError:
        return ModelError(f"{self.path}: cannot be read ({error.strerror})", "v4 verify tells what is damaged")

    def close(self) -> None:
        for file in self._open:
            file.close()


@dataclass(frozen=True)
class Half:
    """Codes or scales of one matrix: dtype and shape as stored, and where they begin in the bytes of their expert."""

    spec: TensorSpec
    at: int


@dataclass(frozen=True)
class ExpertShape:
    """What the bytes of an expert are: the format of each matrix (w1, w3, w2), and its halves, as w1.weight."""

    formats: dict[str, Format]
    halves: dict[str, Half]

    @property
    def n_bytes(self) -> int:
        return sum(half.spec.nbytes for half in self.halves.values())

    def finite(self, codes: np.ndarray) -> bool:
        """Whether every scale is, in the bytes of such an expert."""

        def scales(name: str) -> bool:
            half = self.halves[name + ".scale"]
            return self.formats[name].finite_scales(codes[half.at : half.at + half.spec.nbytes], half.spec.shape[0])

        return all(map(scales, self.formats))


class ExpertFiles:
    """The routed experts of a store's trunk, numbered layer by layer. They may differ in formats, so in size."""

    def __init__(self, store: Store, open_file: Callable[[Path], File] = File):
        """`open_file`: what opens a path; tests pass one that fails."""
        config = store.config
        self.n_layers, self.per_layer = config.num_hidden_layers, config.n_routed_experts
        self._files = []
        self._offsets: list[int] = []  # by expert
        self.shapes: list[ExpertShape] = []  # every one that occurs
        self.shape_of: list[int] = []  # index of an expert's
        found: dict[tuple[str, ...], int] = {}
        for layer in range(self.n_layers):
            names = [f"layers.{layer}.ffn.experts.{e}." for e in range(self.per_layer)]
            self._files.append(open_file(store.places[names[0] + EXPERT_ORDER[0]].path))
            for name in names:
                kind = tuple(store.formats[f"{name}{w}.weight"] for w in MATRICES)
                if kind not in found:
                    found[kind] = len(self.shapes)
                    self.shapes.append(_shape(store, name))
                self.shape_of.append(found[kind])
                self._offsets.append(store.places[name + EXPERT_ORDER[0]].offset)
        sizes = [shape.n_bytes for shape in self.shapes]
        self.sizes = [sizes[shape] for shape in self.shape_of]  # bytes, by expert
        self.rooms = [-(-size // SLOT) * SLOT for size in sizes]  # memory of one, by shape
        self.counts = np.bincount(self.shape_of, minlength=len(sizes)).tolist()  # experts, by shape

    def __len__(self) -> int:
        return self.n_layers * self.per_layer

    def read_into(self, expert: int, target: memoryview, start: int, end: int) -> None:
        """Bytes start .. end - 1 of one expert to their place in page-aligned `target` of `rooms` of its shape; `start`
        is a multiple of PAGE, `end` too or the expert's size. ModelError."""
        layer, number = divmod(expert, self.per_layer)
        self._files[layer].read_into(target[start:], self._offsets[expert] + start, end - start)
        if end < self.sizes[expert]:
            return
        if not self.shapes[self.shape_of[expert]].finite(np.frombuffer(target, np.uint8)):
            raise ModelError(
                f"{self._files[layer].path}: expert {number} of layer {layer} holds scales that are not finite",
                "v4 verify tells what is damaged",
            )

    def close(self) -> None:
        for file in self._files:
            file.close()


def _shape(store: Store, at: str) -> ExpertShape:
    """Of the expert whose tensors begin with `at`."""
    places = {name: store.places[at + name] for name in EXPERT_ORDER if at + name in store.places}
    begin = places[EXPERT_ORDER[0]].offset
    halves = {name: Half(place.spec, place.offset - begin) for name, place in places.items()}
    return ExpertShape({w: store.form(f"{at}{w}.weight") for w in MATRICES}, halves)


def into_memory(path: Path, n_bytes: int) -> Room:
    """A whole file in private memory, nothing of it in the system's cache. ModelError, MemoryError."""
    memory = anonymous(-(-n_bytes // PAGE) * PAGE)
    file = File(path)
    try:
        file.read_into(memory.data.data, 0, n_bytes)
    finally:
        file.close()
    return memory


def anonymous(n_bytes: int) -> Room:
    """Private memory, in large pages where there are any. MemoryError."""
    memory = committed(n_bytes)
    memory.large_pages()
    return memory
