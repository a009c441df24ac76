"""What a GPU can do at most, measured in seconds: the figures that predictions and benchmarks are made of."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import triton
import triton.language as tl

from v4kernels.triton.device import Device
from v4kernels.triton.types import i32p

WORDS = 16384  # of 4 bytes, that a program reads
WARPS = 8

Clock = Callable[[], float]  # seconds


@dataclass(frozen=True)
class Limits:
    read: float  # bytes/s of device memory
    to_device: float  # bytes/s from pinned memory of the host
    launch: float  # seconds that a launch takes where one follows the other
    node: float  # seconds that a launch takes as a node of a graph


@triton.jit
def read_words(
    x: i32p,  # [programs, WORDS]
    out: i32p,  # out [programs]: what the words of each add up to
    WORDS: tl.constexpr,
):
    """Grid: (programs,)."""
    row = tl.program_id(0).to(tl.int64)
    tl.store(out + row, tl.sum(tl.load(x + row * WORDS + tl.arange(0, WORDS)), axis=0))


@triton.jit
def touch(out: i32p):
    """Next to nothing: out [1] = 1. Grid: (1,)."""
    tl.store(out, 1)


def limits(device: Device, n_bytes: int = 1 << 30, clock: Clock = time.perf_counter) -> Limits:
    """All of them, in about a second. `n_bytes`: read, a quarter of it copied; more than caches hold. MemoryError."""
    return Limits(
        read_bandwidth(device, n_bytes, clock=clock),
        copy_bandwidth(device, n_bytes // 4, clock=clock),
        launch_cost(device, clock=clock),
        node_cost(device, clock=clock),
    )


def read_bandwidth(device: Device, n_bytes: int, rounds: int = 5, clock: Clock = time.perf_counter) -> float:
    """Bytes/s, the best of some rounds over n_bytes, rounded down to whole programs."""
    programs = n_bytes // (4 * WORDS)
    x, out = _allocated(device, 4 * WORDS * programs, 4 * programs)
    try:
        run = lambda: device.launch(read_words, (programs,), (x, out), {"WORDS": WORDS}, WARPS)  # noqa: E731
        return 4 * WORDS * programs / _seconds(device, run, rounds, clock)
    finally:
        _free(device, x, out)


def copy_bandwidth(device: Device, n_bytes: int, rounds: int = 3, clock: Clock = time.perf_counter) -> float:
    """Bytes/s from pinned memory of the host to the device."""
    (to,) = _allocated(device, n_bytes)
    try:
        _, source = device.mapped(n_bytes)
        try:
            return n_bytes / _seconds(device, lambda: device.move(to, source, n_bytes), rounds, clock)
        finally:
            device.free(source)
    finally:
        _free(device, to)


def launch_cost(device: Device, launches: int = 1000, rounds: int = 3, clock: Clock = time.perf_counter) -> float:
    """Seconds from launch to launch of a kernel that does nothing, the device's or the host's, whichever is slower."""
    (out,) = _allocated(device, 4)
    try:
        return _seconds(device, lambda: _touches(device, out, launches), rounds, clock) / launches
    finally:
        _free(device, out)


def node_cost(device: Device, nodes: int = 1000, rounds: int = 3, clock: Clock = time.perf_counter) -> float:
    """The same as nodes of a graph."""
    (out,) = _allocated(device, 4)
    try:
        with device.record() as graph:
            _touches(device, out, nodes)
        return _seconds(device, graph.replay, rounds, clock) / nodes
    finally:
        _free(device, out)


def _touches(device: Device, out: int, launches: int) -> None:
    for _ in range(launches):
        device.launch(touch, (1,), (out,), {}, warps=1)


def _seconds(device: Device, run: Callable[[], None], rounds: int, clock: Clock) -> float:
    """The least that a run took, after a first one."""
    run()
    device.synchronize()
    taken = []
    for _ in range(rounds):
        begin = clock()
        run()
        device.synchronize()
        taken.append(clock() - begin)
    return min(taken)


def _allocated(device: Device, *sizes: int) -> list[int]:
    """All or nothing. MemoryError."""
    addresses: list[int] = []
    try:
        for size in sizes:
            addresses.append(device.alloc(size))
    except MemoryError:
        _free(device, *addresses)
        raise
    return addresses


def _free(device: Device, *addresses: int) -> None:
    for address in addresses:
        device.free(address)
