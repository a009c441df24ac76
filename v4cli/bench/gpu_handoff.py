"""What it takes to have the CPU compute an expert for a card and to have its result: experts so small that nothing else
takes long."""

from statistics import median

import numpy as np
from v4kernels.cpu import PackedWeight
from v4kernels.cpu.bound import ExpertTable
from v4kernels.cpu.serve import TIMEOUT_S, ServedLayer, Server
from v4kernels.tree import Expert
from v4kernels.triton.device import Device
from v4kernels.triton.served import Handoff

from v4cli.bench.gpu_memory import Memory

DIM, INNER = 64, 32
LAYERS = 43  # of a step, a hand-off in each
STEPS = 9


def round_trip(device: Device, layers: int = LAYERS, steps: int = STEPS) -> float:
    """Microseconds that a card waits for one, by its own clock; the median step."""
    hand = Handoff(device, np.zeros((layers, 1), np.int8), DIM, 1, 1)
    server = Server(hand.ring, [ServedLayer(ExpertTable([tiny()]), 10.0)] * layers, None, TIMEOUT_S)
    try:
        with Memory(device) as memory:
            x, ids, one = (
                memory.floats(1, DIM),
                memory.array(np.zeros(1, np.int64)),
                memory.array(np.ones(1, np.float32)),
            )
            waited = []
            for _ in range(steps):
                server.begin()
                hand.begin(np.full((layers, 1), -1, np.int16), 1)
                for layer in range(layers):
                    hand.post(layer, x, ids, one, one)
                    hand.wait()
                told = hand.end()
                server.rest()
                if told.code:
                    raise RuntimeError(f"the hand-off failed with code {told.code}")
                waited.append(told.waited_s)
            return 1e6 * median(waited[1:] or waited) / layers
    finally:
        server.stop()
        hand.close()


def tiny() -> Expert[PackedWeight]:
    """An expert of zeros."""

    def matrix(rows: int, cols: int) -> PackedWeight:
        return PackedWeight.of("fp4", np.zeros((rows, cols // 2), np.uint8), np.full((rows, cols // 32), 127, np.uint8))

    return Expert(w1=matrix(INNER, DIM), w3=matrix(INNER, DIM), w2=matrix(DIM, INNER))
