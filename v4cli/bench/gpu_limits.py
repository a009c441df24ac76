"""What a card can do at most, and what it takes to have it do anything: limits that kernels are shown beside."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from v4kernels.triton import measure, probe
from v4kernels.triton.device import Device

from v4cli.bench.gpu_clock import Stopwatch
from v4cli.bench.gpu_memory import Memory

MIB = 1 << 20


@dataclass(frozen=True)
class Probes:
    """How much is measured."""

    read: int = 1 << 30  # bytes
    copied: tuple[int, ...] = (MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB)  # between pinned memory and the card
    rows: int = 512  # entries gathered from pinned memory: a CSA layer's choice
    row_bytes: int = 584
    among: int = 1 << 17  # entries
    launches: int = 1000


def limits(device: Device, watch: Stopwatch, probes: Probes) -> Iterator[tuple[str, float]]:
    """Yields names and values: GB/s, and microseconds (`_us`)."""
    yield "read", measure.read_bandwidth(device, probes.read, clock=watch.clock) / 1e9
    yield "launch_us", 1e6 * measure.launch_cost(device, probes.launches, clock=watch.clock)
    yield "node_us", 1e6 * measure.node_cost(device, probes.launches, clock=watch.clock)
    yield "gather_us", gathering(device, watch, probes)
    yield from copying(device, watch, probes)


def gathering(device: Device, watch: Stopwatch, probes: Probes) -> float:
    """Microseconds to read entries at random places of pinned memory."""
    words = probes.row_bytes // 8
    with Memory(device) as memory:
        _, rows = device.mapped(probes.among * probes.row_bytes)
        memory.held.append(rows)
        which = [memory.array(memory.rng.integers(0, probes.among, probes.rows, np.int32)) for _ in range(8)]
        out = memory.empty(probes.rows * probes.row_bytes)

        def work(i: int) -> None:
            device.launch(probe.gather_rows, (probes.rows,), (rows, which[i], out), {"WORDS": words}, 1)

        return 1e6 * watch.piece(work, len(which))


def copying(device: Device, watch: Stopwatch, probes: Probes) -> Iterator[tuple[str, float]]:
    """GB/s between pinned memory and the card, by bytes of a copy."""
    with Memory(device) as memory:
        most = max(probes.copied)
        at, (_, pinned) = memory.empty(most), device.mapped(most)
        memory.held.append(pinned)
        for n_bytes in probes.copied:
            for name, to, source in (("to_card", at, pinned), ("from_card", pinned, at)):
                s = watch.typical(lambda to=to, source=source, n=n_bytes: device.move(to, source, n))
                yield f"{name}_{n_bytes >> 10}_kib", n_bytes / s / 1e9
