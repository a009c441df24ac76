"""Experts for a device: the ring that both sides see, and the thread of this process that serves it (v4k.h).

A step, seen from the device: for each job fill what `Ring.job` gives, `post` it, `wait` for it, read its y. Devices
that are not host code do the same at the offsets of HEAD and `job_dtype`.
"""

import ctypes
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from v4kernels import native
from v4kernels.cpu.bound import ExpertTable
from v4kernels.system import committed

TIMEOUT_S = 60.0  # more than a slow disk takes for a job's experts, or the slowest attention between two jobs
LINE = 64
HEAD = np.dtype(
    {
        "names": ["posted", "served", "error", "failed", "process"],
        "formats": ["<u8", "<u8", "<i8", "<i8", "<i8"],
        "offsets": [0, 64, 128, 192, 256],
        "itemsize": 320,
    }
)
_left: list[object] = []  # what threads that did not end in time may still touch


class Stopped(RuntimeError):
    """Nobody serves the ring any more."""


@dataclass(frozen=True, slots=True)
class Job:
    """Views of one job: pairs (row of x, expert) with their weights, x and y (most pairs, D) fp32."""

    fields: np.void
    row: np.ndarray
    expert: np.ndarray
    weight: np.ndarray
    x: np.ndarray
    y: np.ndarray

    @property
    def layer(self) -> int:
        return int(self.fields["layer"])

    @property
    def pairs(self) -> int:
        return int(self.fields["pairs"])

    def fill(self, layer: int, x: np.ndarray, row: np.ndarray, expert: np.ndarray, weight: np.ndarray) -> None:
        """Ask for pairs (n,) of rows of x (rows, D), up to as many as the ring's `pairs` of both."""
        self.fields["layer"], self.fields["rows"], self.fields["pairs"] = layer, len(x), len(row)
        self.x[: len(x)] = x
        self.row[: len(row)], self.expert[: len(row)], self.weight[: len(row)] = row, expert, weight


@dataclass(frozen=True, slots=True)
class Told:
    """What a step left on a device that posted and waited by itself: the V4K_E code that it ended with, or 0; how long
    it waited; and of every layer what was routed, ids (layers, N, top_k) int64 and scores (layers, N, E) fp32."""

    code: int
    waited_s: float
    ids: np.ndarray
    scores: np.ndarray


class Ring:
    """`n_jobs` jobs of up to `pairs` pairs of D = `dim`."""

    def __init__(self, n_jobs: int, pairs: int, dim: int, memory: np.ndarray | None = None):
        """`memory`: zeroed bytes, aligned to 64, that a device can see; by default of this process alone. ValueError
        for sizes that do not fit, MemoryError."""
        self.n_jobs, self.pairs, self.dim = n_jobs, pairs, dim
        self.native = native.Ring(None, n_jobs, pairs, dim)
        self.at = ctypes.addressof(self.native)
        self.nbytes = native.library().v4k_ring_bytes(self.at)
        if self.nbytes < 0:
            raise ValueError(f"no ring of {n_jobs} jobs of {pairs} pairs of {dim}")
        if memory is None:
            try:
                memory = committed(self.nbytes).data  # a child that forks has a ring of its own
            except MemoryError:
                raise MemoryError("no memory for the ring of experts for a device") from None
        if memory.dtype != np.uint8 or memory.shape != (self.nbytes,) or memory.ctypes.data % LINE:
            raise ValueError(f"the ring needs {self.nbytes} bytes, aligned to {LINE}")
        self.native.memory = memory.ctypes.data
        self.head = memory[: HEAD.itemsize].view(HEAD)[0]
        self.jobs = memory[HEAD.itemsize :].view(job_dtype(pairs, dim))

    @property
    def posted(self) -> int:
        """Number of the last job that was posted."""
        return int(self.head["posted"])

    @property
    def served(self) -> int:
        """Number of the last job whose y is there, or was when this was read."""
        return int(self.head["served"])

    def job(self, number: int) -> Job:
        """The job of this number; what lay in its place is `n_jobs` older."""
        fields = self.jobs[number % self.n_jobs]
        return Job(fields, *(fields[name] for name in ("row", "expert", "weight", "x", "y")))

    def post(self, number: int) -> None:
        """This job is filled: serve it."""
        self.jobs["number"][number % self.n_jobs] = number
        native.library().v4k_ring_post(self.at, number)

    def wait(self, number: int, timeout_s: float = TIMEOUT_S) -> int:
        """Until its y is there: 0, or a V4K_E code that says why it never will be."""
        return native.library().v4k_ring_wait(self.at, number, int(1e6 * timeout_s))


def job_dtype(pairs: int, dim: int) -> np.dtype:
    """A job of a ring, as v4k.h lays it out."""
    column = -(-4 * pairs // LINE) * LINE
    offsets, at = [0, 8, 16, 24], LINE
    for _ in range(3):
        offsets.append(at)
        at += column
    rows = 4 * pairs * dim
    offsets += [at, at + rows]
    formats: list[Any] = ["<u8", "<i8", "<i8", "<i8", ("<i4", pairs), ("<i4", pairs), ("<f4", pairs)]
    formats += [("<f4", (pairs, dim))] * 2
    names = ["number", "layer", "rows", "pairs", "row", "expert", "weight", "x", "y"]
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": at + 2 * rows})


@dataclass(frozen=True, slots=True)
class ServedLayer:
    """Experts of one layer and the limit of their SwiGLU. The table may change while no job is on, or in a fetch."""

    experts: ExpertTable
    limit: float


class Server:
    """The thread that serves a ring. To be stopped; an interpreter that ends stops it."""

    def __init__(
        self,
        ring: Ring,
        layers: Sequence[ServedLayer],
        fetch: Callable[[int], None] | None = None,
        timeout_s: float = TIMEOUT_S,
    ):
        """`fetch(number)`, called in the thread, does a job some of whose experts are not in memory; what it raises is
        raised by `wait`. Neither side waits longer than `timeout_s` for the other. MemoryError without a thread."""
        self.ring, self.timeout_s = ring, timeout_s
        self._fetching = _Fetching(fetch) if fetch else None
        call = native.Fetch(self._fetching.call) if self._fetching else native.Fetch()
        described = (native.ServedLayer * len(layers))(
            *(native.ServedLayer(layer.experts.at, layer.experts.n, layer.limit) for layer in layers)
        )
        server = ctypes.c_void_p()
        checked(
            native.library().v4k_serve_start(
                ring.at,
                ctypes.addressof(described),
                len(layers),
                call,
                None,
                int(1e6 * timeout_s),
                ctypes.byref(server),
            )
        )
        self._server = server.value or 0
        self._stop = weakref.finalize(self, _stop, self._server, (ring, list(layers), call))

    def begin(self) -> None:
        """A step begins. TimeoutError if the thread is still busy with the one before."""
        self._check()
        checked(native.library().v4k_serve_begin(self._server))

    def wait(self, number: int) -> None:
        """Until a job's y is there. TimeoutError, Stopped, what `fetch` raised, ValueError for a job that is none."""
        self.check(self.ring.wait(number, self.timeout_s))

    def check(self, code: int) -> None:
        """Raise what `wait` raises, of a V4K_E code that a device's own wait ended with; 0: nothing."""
        if code == native.EFETCH and self._fetching and self._fetching.problem:
            raise self._fetching.problem
        checked(code)

    def rest(self) -> None:
        """The step is over, or given up: after this the thread touches nothing. TimeoutError if it does not come to
        rest. Errors of the step were told by `wait`."""
        self._check()
        code = native.library().v4k_serve_end(self._server)
        if code == native.ETIMEOUT:
            checked(code)

    def stop(self) -> None:
        """End the thread; who waits for a job gets Stopped. Again: nothing."""
        self._stop()

    def _check(self) -> None:
        if not self._stop.alive:
            raise Stopped("the thread that computes experts was stopped")


class _Fetching:
    """A callback that raises nothing: `problem` is what it would have raised."""

    def __init__(self, fetch: Callable[[int], None]):
        self.fetch = fetch
        self.problem: BaseException | None = None

    def call(self, context: int | None, number: int) -> int:
        self.problem = None
        try:
            self.fetch(number)
        except BaseException as problem:  # nothing may pass through C
            self.problem = problem
        return 0 if self.problem is None else 1


def _stop(server: int, used: object) -> None:
    if native.library().v4k_serve_stop(server) == native.ETIMEOUT:
        _left.append(used)


def checked(code: int) -> None:
    """TimeoutError, Stopped, or what native.checked raises."""
    if code == native.ETIMEOUT:
        raise TimeoutError("the other side of the ring did not answer in time")
    if code == native.ESTOPPED:
        raise Stopped("nobody serves the ring")
    native.checked(code)
