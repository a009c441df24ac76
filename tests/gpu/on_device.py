"""Kernels on a device, a real one or the PTX machine's. Import behind `pytest.importorskip("triton")`."""

from typing import Any

import numpy as np
import torch
from gpu_kernels import constant
from v4kernels.triton.device import Device


class OnDevice:
    """A Launch (gpu_kernels.py): arrays go to the device before a launch and come back after it, placed ones always."""

    def __init__(self, device: Device):
        self.device = device
        self.placed: list[tuple[np.ndarray, int]] = []

    def __call__(
        self, kernel: Any, grid: tuple[int, ...], *arguments: Any, warps: int = 4, stages: int = 1, **constants: Any
    ) -> None:
        given = [constant(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        passing = {id(a): a for a in given if isinstance(a, np.ndarray) and not self._found(a)}
        at = {key: self._copy(a) for key, a in passing.items()}
        for array, address in self.placed:
            self.device.write(address, array)
        numbers = [(at.get(id(a)) or self.address(a)) if isinstance(a, np.ndarray) else a for a in given]
        self.device.launch(kernel, grid, numbers, constants, warps, stages)
        for array, address in [*self.placed, *((a, at[key]) for key, a in passing.items() if a.flags.writeable)]:
            array[...] = self.device.read(address, array.nbytes).view(array.dtype).reshape(array.shape)
        for address in at.values():
            self.device.free(address)

    def place(self, array: np.ndarray) -> np.ndarray:
        held = np.array(array, order="C")
        self.placed.append((held, self._copy(held)))
        return held

    def address(self, array: np.ndarray) -> int:
        found = self._found(array)
        assert found
        return found

    def _copy(self, array: np.ndarray) -> int:
        address = self.device.alloc(max(array.nbytes, 1))
        self.device.write(address, array)
        return address

    def _found(self, array: np.ndarray) -> int:
        """Of an array that is placed, or a view of one; 0: it is not."""
        for held, address in self.placed:
            offset = array.ctypes.data - held.ctypes.data
            if 0 <= offset < held.nbytes:
                return address + offset
        return 0
