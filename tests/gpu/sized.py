"""Devices that compute nothing: one that notes what is launched, one that knows how much memory is taken and has none.
Import behind `pytest.importorskip("triton")`."""

import mmap

import numpy as np
from emulated import Emulated
from v4kernels.cpu import PackedWeight
from v4kernels.formats import OFFICIAL
from v4kernels.triton.device import Launch, Node, Recording
from v4kernels.triton.memory import aligned

from v4cli.model.schema import expected_tensors
from v4cli.store.recipe import RECIPES, formats_by

RNG = np.random.default_rng(5)
FIRST = 1 << 40  # address


def key(node: Launch) -> tuple:
    """What a launch compiles."""
    return node.kernel.fn.__name__, tuple(sorted(node.constants.items(), key=str)), node.warps, node.stages


class Noting(Emulated):
    """Kernels choose experts for rows, at random, and do nothing else."""

    def __init__(self, room: int = 1 << 40):
        super().__init__(room=room)
        self.asked: set[tuple] = set()

    def prepare(self, node: Node) -> None:
        if isinstance(node, Launch):
            self.asked.add(key(node))

    def run(self, node: Node) -> None:
        if not isinstance(node, Launch):
            super().run(node)
        elif node.kernel.fn.__name__ == "route":
            sizes = node.constants
            ids = [RNG.permutation(sizes["EXPERTS"])[: sizes["TOP_K"]] for _ in range(node.grid[0])]
            self.write(node.arguments[4], np.array(ids, np.int64))


class Sized(Recording):
    """Addresses without memory behind them; reads give zeros."""

    gpu = "sm_89"

    def __init__(self):
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.hosted: dict[int, int] = {}
        self.end, self.peak = FIRST, 0

    @property
    def nbytes(self) -> int:
        return sum(self.sizes.values())

    def alloc(self, n_bytes: int) -> int:
        at, self.end = self.end, self.end + aligned(n_bytes)
        self.sizes[at] = aligned(n_bytes)
        self.peak = max(self.peak, self.nbytes)
        return at

    def free(self, address: int) -> None:
        self.sizes.pop(address, None)
        self.hosted.pop(address, None)

    def mapped(self, n_bytes: int) -> tuple[np.ndarray, int]:
        at, self.end = self.end, self.end + aligned(n_bytes)
        self.hosted[at] = n_bytes
        return np.frombuffer(mmap.mmap(-1, max(n_bytes, 1)), np.uint8)[:n_bytes], at

    def read(self, address: int, n_bytes: int) -> np.ndarray:
        return np.zeros(n_bytes, np.uint8)

    def write(self, address: int, data: np.ndarray) -> None: ...

    def synchronize(self) -> None: ...

    def prepare(self, node: Node) -> None: ...

    def run(self, node: Node) -> None: ...


class Zeros:
    """A source of weights of any size that are zeros, without memory."""

    def __init__(self, config, quant: str):
        self.specs = expected_tensors(config, with_mtp=False)
        self.formats = formats_by(RECIPES[quant].rules, self.specs)
        largest = max(spec.nbytes for spec in self.specs.values())
        self.zeros = np.frombuffer(mmap.mmap(-1, 2 * largest, prot=mmap.PROT_READ), np.uint8)

    def weight(self, name: str) -> PackedWeight:
        spec = self.specs[name]
        form, at = self.formats.get(name, OFFICIAL[spec.dtype]), self.zeros.ctypes.data
        rows, cols = spec.shape[0], OFFICIAL[spec.dtype].cols(spec.shape[1])
        return PackedWeight(at, at if form.scale else None, rows, cols, form.name, (self.zeros,))

    def vector(self, name: str) -> np.ndarray:
        spec = self.specs[name]
        return np.zeros(spec.shape, np.int64 if spec.dtype == "I64" else np.float32)
