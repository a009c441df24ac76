"""Memory of a device for one measurement."""

import numpy as np
from v4kernels.triton.device import Device

POOL = 1 << 20  # random bytes, repeated
PAGE = 256  # what begins there is aligned for any load


class Memory:
    """Allocations that are given back together. Bytes are random, since a GPU is faster with zeros."""

    def __init__(self, device: Device, seed: int = 0):
        self.device, self.held = device, []
        self.rng = np.random.default_rng(seed)

    def __enter__(self) -> "Memory":
        return self

    def __exit__(self, *failure: object) -> None:
        self.device.synchronize()
        for address in self.held:
            self.device.free(address)

    def empty(self, n_bytes: int) -> int:
        """Address of so many bytes, zeros. MemoryError."""
        self.held.append(self.device.alloc(max(n_bytes, PAGE)))
        return self.held[-1]

    def array(self, values: np.ndarray) -> int:
        """Address of a copy."""
        at = self.empty(values.nbytes)
        self.device.write(at, values)
        return at

    def random(self, n_bytes: int) -> int:
        """Address of so many random bytes."""
        at = self.empty(n_bytes)
        first = min(n_bytes, POOL)
        self.device.write(at, self.rng.integers(0, 256, first, np.uint8))
        repeat(self.device, at, first, n_bytes)
        return at

    def floats(self, *shape: int) -> int:
        """Address of normal fp32 numbers."""
        count = int(np.prod(shape))
        few = self.rng.standard_normal(min(count, POOL // 4)).astype(np.float32)
        return self.array(np.resize(few, count))

    def copies(self, n_bytes: int, count: int) -> list[int]:
        """Addresses of so many blocks of random bytes, in one allocation."""
        each = -(-n_bytes // PAGE) * PAGE
        first = self.random(each * count)
        return [first + i * each for i in range(count)]


def repeat(device: Device, at: int, first: int, n_bytes: int) -> None:
    """The first bytes there again and again, n_bytes in all."""
    while first < n_bytes:
        more = min(first, n_bytes - first)
        device.move(at + first, at, more)
        first += more
