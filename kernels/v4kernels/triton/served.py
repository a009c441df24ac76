"""Steps of few rows whose experts are on the device or with the server's thread (cpu/serve.py): the ring in memory that
both see, and for each layer the launches of handoff.py. Nothing of a step asks the host, so it can be recorded.
"""

import numpy as np

from v4kernels.cpu.serve import HEAD, TIMEOUT_S, Ring, Told, job_dtype
from v4kernels.triton import handoff
from v4kernels.triton.device import Device
from v4kernels.triton.launch import ALIGNMENT, assembly
from v4kernels.triton.memory import Back

BLOCK = 1024  # values that a program copies or adds at a time
STATE_BYTES = 8 * handoff.STATE
JOBS = 4  # of the ring: a step on the device has one on its way, what the host drives has several
LOOKS_PER_S = 1e6  # where there is no clock: a look crosses the bus


class Handoff:
    """For steps of up to `rows` rows. The slot table, int16 (layers, E), is on the device and changes between steps;
    where experts are of several kinds, so is one of each kind, in which the others have no slot."""

    def __init__(self, device: Device, kind: np.ndarray, dim: int, top_k: int, rows: int, timeout_s: float = TIMEOUT_S):
        """`kind` (layers, E): numbers of kinds of experts; `dim`: D. MemoryError."""
        self.device, self.shape, self.dim, self.top_k, self.rows = device, kind.shape, dim, top_k, rows
        self.assembly = assembly(device.gpu)
        self.per_s = 1e9 if self.assembly == "ptx" else LOOKS_PER_S  # what kernels count waiting in
        self.limit = int(timeout_s * self.per_s)
        pairs = rows * top_k
        memory, self.ring_at = device.mapped(HEAD.itemsize + JOBS * job_dtype(pairs, dim).itemsize)
        self.ring = Ring(JOBS, pairs, dim, memory)
        self.places = handoff.places(pairs, dim)
        layers, experts = kind.shape
        self._kind, several = kind, int(kind.max(initial=0)) + 1 if kind.any() else 0
        self._tables = np.full((1 + several, layers, aligned(2 * experts) // 2), -1, np.int16)  # as on the device
        self.log_at = device.alloc(STATE_BYTES + layers * self._log_bytes(rows))
        self.table_at = device.alloc(self._tables.nbytes)
        self.order_at = device.alloc(4 * pairs)
        device.write(self.table_at, self._tables)
        self.n = 0  # rows of the step

    def _log_bytes(self, rows: int) -> int:
        """Of what was routed for so many rows in a layer: ids, then scores."""
        return aligned(8 * rows * self.top_k) + aligned(4 * rows * self.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of device memory."""
        log = STATE_BYTES + self.shape[0] * self._log_bytes(self.rows)
        return log + self._tables.nbytes + 4 * self.rows * self.top_k

    def close(self) -> None:
        """Give the memory back; the thread that serves the ring is stopped."""
        for address in (self.ring_at, self.log_at, self.table_at, self.order_at):
            self.device.free(address)

    # -- a step -----------------------------------------------------------------------------------------------------

    def begin(self, table: np.ndarray, rows: int) -> None:
        """A step of so many rows begins, the one before is over on the device; `table`: of slots."""
        self.n = rows
        known = self._tables[:, :, : self.shape[1]]
        if not np.array_equal(known[0], table):
            known[0] = table
            for number in range(len(known) - 1):
                known[1 + number] = np.where(self._kind == number, table, -1)
            self.device.write(self.table_at, self._tables)
        state = np.zeros(handoff.STATE, np.int64)
        state[handoff.NUMBER.value] = self.ring.posted
        self.device.write(self.log_at, state)

    def slots_at(self, layer: int, kind: int | None = None) -> int:
        """Address of a layer's slots [E] int16, those of one kind only if there are several."""
        table = 0 if kind is None or len(self._tables) == 1 else 1 + kind
        return self.table_at + table * self._tables[0].nbytes + layer * self._tables[0, 0].nbytes

    def post(self, layer: int, x: int, ids: int, weights: int, scores: int) -> None:
        """Have the server compute what has no slot of x (N, D) fp32, ids and weights (N, top_k); scores (N, E). All are
        addresses."""
        n, experts = self.n, self.shape[1]
        seen = self.log_at + STATE_BYTES + layer * self._log_bytes(n)
        pairs = 1 << (self.ring.pairs - 1).bit_length()  # of most rows, so that all numbers of rows have one kernel
        sizes = {"DIM": self.dim, "TOP_K": self.top_k, "EXPERTS": experts, "PAIRS": pairs, "BLOCK": BLOCK}
        given = self.ring_at, self.log_at, self.slots_at(layer), ids, weights, scores, x
        lists = {name: self.places[name] for name in ("JOB", "ROW", "EXPERT", "WEIGHT", "X")}
        self.device.launch(
            handoff.post,
            (1,),
            (*given, seen, seen + aligned(8 * n * self.top_k), self.order_at, layer, n, self.ring.n_jobs),
            sizes | lists | {"ASM": self.assembly},
            warps=8,
        )

    def wait(self) -> None:
        """For what was posted last."""
        arguments = self.ring_at, self.log_at, self.limit
        self.device.launch(handoff.wait, (1,), arguments, {"ASM": self.assembly}, warps=1)

    def add(self, ids: int, hits: int, out: int, back: Back | None = None) -> None:
        """Add to out (N, D), by ascending id, hits (N, top_k, D) or what was waited for; or the sum goes back into
        streams."""
        to = (back.mix, back.streams) if back else (out, out)
        arguments = self.ring_at, self.log_at, self.order_at, ids, hits, out, *to, self.ring.n_jobs
        constants = {"N": self.dim, "TOP_K": self.top_k, "JOB": self.places["JOB"], "Y": self.places["Y"]}
        constants |= {"S": back.count if back else 0}
        grid = -(-self.dim // BLOCK), self.n
        self.device.launch(handoff.add_served, grid, arguments, constants | {"BLOCK": BLOCK})

    def end(self) -> Told:
        """The step is launched: wait for it."""
        (layers, experts), n, k = self.shape, self.n, self.top_k
        raw = self.device.read(self.log_at, STATE_BYTES + layers * self._log_bytes(n))
        state, seen = raw[:STATE_BYTES].view(np.int64), raw[STATE_BYTES:].reshape(layers, -1)
        ids, scores = seen[:, : 8 * n * k], seen[:, aligned(8 * n * k) :][:, : 4 * n * experts]
        return Told(
            int(state[handoff.OUTCOME.value]),
            float(state[handoff.WAITED.value]) / self.per_s,
            np.ascontiguousarray(ids).view(np.int64).reshape(layers, n, k),
            np.ascontiguousarray(scores).view(np.float32).reshape(layers, n, experts),
        )


def aligned(n_bytes: int) -> int:
    """Rounded up to where what kernels get may begin."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT
