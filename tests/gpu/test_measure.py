"""Measured limits are those of the device: here of one whose clock is known."""

import pytest

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
from emulated import Emulated
from v4kernels.triton import measure
from v4kernels.triton.device import Move

READ, COPY, LAUNCH, NODE, FIRST = 2e6, 5e5, 3e-3, 1e-3, 40.0  # bytes/s, bytes/s, seconds


class Timed(Emulated):
    """Everything takes its time, by a clock of its own; the first of each kind much more."""

    def __init__(self):
        super().__init__()
        self.now, self.seen, self.replaying = 0.0, set(), False

    def run(self, node):
        super().run(node)
        if isinstance(node, Move):
            kind, taken = "move", node.n_bytes / COPY
        elif node.kernel is measure.read_words:
            kind, taken = "read", node.grid[0] * 4 * measure.WORDS / READ
        else:
            kind, taken = "touch", NODE if self.replaying else LAUNCH
        self.now += taken if kind in self.seen else FIRST
        self.seen.add(kind)

    def graph(self):
        graph = super().graph()
        replay = graph.replay

        def timed():
            self.replaying = True
            replay()
            self.replaying = False

        graph.replay = timed
        return graph


def test_limits_are_found_without_what_the_first_time_costs():
    device = Timed()
    clock = lambda: device.now  # noqa: E731
    assert measure.read_bandwidth(device, 3 * 4 * measure.WORDS + 5, clock=clock) == pytest.approx(READ)
    assert measure.copy_bandwidth(device, 1000, clock=clock) == pytest.approx(COPY)
    assert measure.launch_cost(device, 4, clock=clock) == pytest.approx(LAUNCH)
    assert measure.node_cost(device, 4, clock=clock) == pytest.approx(NODE)
    assert not device.memory.buffers  # all is given back


def test_all_that_is_to_be_read_is_read():
    device = Emulated()
    device.synchronize = lambda: None
    taken = iter(range(100))
    bandwidth = measure.read_bandwidth(device, 2 * 4 * measure.WORDS, rounds=1, clock=lambda: next(taken))
    assert bandwidth == 2 * 4 * measure.WORDS and device.launches == 2


def test_without_room_nothing_stays_allocated():
    device = Emulated(room=1 << 16)
    with pytest.raises(MemoryError):
        measure.read_bandwidth(device, 1 << 16)
    assert device.nbytes == 0


@pytest.mark.device
def test_a_card_has_limits(card):
    found = measure.limits(card)
    assert found.read > found.to_device > 1e9 and found.launch > found.node > 0
