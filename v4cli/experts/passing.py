"""Experts that pass through a device's spare slots: in a step of many rows what lies in RAM is copied there, used once,
and overwritten, where that is faster than leaving it to the CPU."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from v4kernels.cpu import PackedWeight
from v4kernels.tree import Expert

from v4cli.experts.device import DeviceSlots

NAP_S = 5e-5


@dataclass(frozen=True, slots=True)
class Rates:
    """What was measured of a machine."""

    link: float  # bytes a second that are copied to the device
    ram: float  # bytes a second of experts that the CPU multiplies with few rows
    pair_s: float  # seconds that the CPU takes for a row and an expert, where rows are many

    def worth_a_copy(self, uses: np.ndarray, n_bytes: np.ndarray) -> np.ndarray:
        """Which experts (n,), used by so many rows and of so many bytes, should be copied, so that the copies and the
        CPU, both at work at once, are done the soonest. The device computes faster than it is fed."""
        on_cpu = np.maximum(n_bytes / self.ram, uses * self.pair_s)
        order = np.argsort(-on_cpu / n_bytes, kind="stable")  # what a copied byte saves
        copying = np.concatenate([[0.0], np.cumsum(n_bytes[order] / self.link)])
        left = np.concatenate([np.cumsum(on_cpu[order][::-1])[::-1], [0.0]])
        chosen = np.zeros(len(uses), bool)
        chosen[order[: int(np.argmin(np.maximum(copying, left)))]] = True
        return chosen


class Passing:
    """Experts of one layer on their way through the two halves of the spare slots: one is written while the other is
    read. The first copy starts at once; what was launched before this was made does not read spare slots."""

    def __init__(self, slots: DeviceSlots, layer: int, experts: dict[int, Expert[PackedWeight]]):
        self.slots, self.layer = slots, layer
        self._experts = iter(experts.items())
        self._half = 0
        self._coming = self._copied()

    def _copied(self) -> tuple[Any, np.ndarray] | None:
        """Start to copy as many as a half holds: a ticket, and spare slots of the layer's experts (E,), counted from 0,
        -1 for others."""
        size = self.slots.spare // 2
        slots, parts = np.full(self.slots.table.shape[1], -1, np.int64), []
        for i, (number, expert) in enumerate(islice(self._experts, size)):
            slots[number] = self._half * size + i
            parts += self.slots.parts_in(self.slots.n_slots + self._half * size + i, expert)
        if not parts:
            return None
        self._half = 1 - self._half
        self.slots.bytes_passed += sum(part.nbytes for _, part in parts)
        return self.slots.device.copy(parts), slots

    def arriving(self) -> Iterator[np.ndarray]:
        """Slots (E,) of those that are there, which the caller's launches may read until the next are asked for."""
        while self._coming is not None:
            ticket, slots = self._coming
            while not self.slots.device.completed(ticket):
                time.sleep(NAP_S)
            self.slots.device.synchronize()  # what reads the other half is done
            self._coming = self._copied()
            yield slots
