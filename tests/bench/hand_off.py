"""What handing experts to the CPU costs beside computing them, as JSON: `python tests/bench/hand_off.py`.

The caller plays the device: it posts a job and waits for it. An empty job is the hand-off alone, both ways; `call_us`
is what Python takes to call a wait that ends at once. A layer's job has the six experts of a token at Flash's size,
all missing, beside v4k_experts called for as many. On a machine that does other things the least of each counts: the
caller waits on a core that a device would leave alone.
"""

import argparse
import json
import sys
from collections.abc import Callable
from statistics import median, quantiles
from time import perf_counter

import numpy as np
from v4kernels import native
from v4kernels.cpu import Buffer, ExpertTable, PackedWeight, default_threads
from v4kernels.cpu.serve import Ring, ServedLayer, Server
from v4kernels.tree import Expert

HIDDEN, INTER, TOP_K, LIMIT = 4096, 2048, 6, 10.0
SETS = 4  # of experts, used in turn: more than caches hold
RANDOM = np.random.default_rng(0)


def expert() -> Expert[PackedWeight]:
    def weight(rows: int, cols: int) -> PackedWeight:
        codes = RANDOM.integers(0, 256, (rows, cols // 2), np.uint8)
        return PackedWeight.of("fp4", codes, np.full((rows, cols // native.GROUP), 121, np.uint8))

    return Expert(w1=weight(INTER, HIDDEN), w3=weight(INTER, HIDDEN), w2=weight(HIDDEN, INTER))


def microseconds(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return 1e6 * (perf_counter() - start)


def percentiles(times: list[float]) -> dict[str, float]:
    tenths = quantiles(times, n=10)
    return {
        "least": round(min(times), 2),
        "p10": round(tenths[0], 2),
        "median": round(tenths[4], 2),
        "p90": round(tenths[8], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=20_000, help="empty ones")
    parser.add_argument("--layers", type=int, default=200, help="jobs with experts")
    args = parser.parse_args()
    native.set_threads(default_threads())
    experts = [expert() for _ in range(SETS * TOP_K)]
    table = ExpertTable(experts)
    ring = Ring(2, TOP_K, HIDDEN)
    server = Server(ring, [ServedLayer(table, LIMIT)])
    x, nothing = RANDOM.standard_normal((1, HIDDEN), np.float32), np.zeros(0, np.int64)
    weights, out = np.full((1, TOP_K), 0.2, np.float32), Buffer.of(np.zeros((1, HIDDEN), np.float32))

    def hand_off(number: int) -> None:
        ring.post(number)
        server.wait(number)

    def direct(ids: np.ndarray) -> None:
        at = (x.ctypes.data, 1, ids.ctypes.data, weights.ctypes.data, TOP_K, LIMIT, out.at)
        native.checked(native.library().v4k_experts(table.at, table.n, None, *at))

    server.begin()
    empty, calls, layers, alone = [], [], [], []
    for _ in range(args.jobs):
        number = ring.posted + 1
        ring.job(number).fill(0, x[:0], nothing, nothing, weights[0, :0])
        empty.append(microseconds(lambda number=number: hand_off(number)))
        calls.append(microseconds(lambda number=number: server.wait(number)))
    for i in range(args.layers):
        ids = np.arange(TOP_K)[None, :] + i % SETS * TOP_K
        alone.append(microseconds(lambda ids=ids: direct(ids)))
        number, other = ring.posted + 1, (ids[0] + TOP_K) % table.n
        ring.job(number).fill(0, x, np.zeros(TOP_K, np.int64), other, weights[0])
        layers.append(microseconds(lambda number=number: hand_off(number)))
    server.rest()
    server.stop()
    json.dump(
        {
            "isa": native.isa(),
            "threads": native.threads(),
            "empty_us": percentiles(empty),
            "call_us": median(calls),
            "layer_us": percentiles(layers),
            "experts_us": percentiles(alone),
            "layer_to_experts": min(layers) / min(alone),
        },
        sys.stdout,
        indent=2,
    )
    print()


if __name__ == "__main__":
    main()
