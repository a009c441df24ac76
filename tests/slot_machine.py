"""Slots of a device as a state machine: no step reads anything but what its table names, whatever is copied when."""

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from v4kernels.cpu import PackedWeight
from v4kernels.tree import Expert

from v4cli.experts.device import COPIES, DeviceSlots, parts_of, pools_of, slot_bytes
from v4cli.experts.policy import Divided

LAYERS, PER_LAYER = 3, 8
SIZES = 32, 64  # of matrices, by kind
ALL = LAYERS * PER_LAYER
KIND = np.where(np.arange(ALL) % 3 == 1, 1, 0).astype(np.int8)


def expert(size: int, fill: int) -> Expert[PackedWeight]:
    """All of whose bytes are `fill`."""
    codes, scale = (np.full((size, width), fill, np.uint8) for width in (size // 2, size // 32))
    return Expert(*(PackedWeight.of("fp4", codes, scale) for _ in range(3)))


def source(number: int) -> Expert[PackedWeight]:
    return expert(SIZES[KIND[number]], number + 1)


def slots_of(device, n_slots, of=source) -> DeviceSlots:
    """Of two kinds of experts; of the slots about a third are for those that are larger."""
    pools = pools_of([source(0), source(1)], KIND, n_slots)
    return DeviceSlots(device, KIND.reshape(LAYERS, PER_LAYER), pools, of)


class Slots(RuleBasedStateMachine):
    """Steps, copies, failures in any order; RAM holds some experts, in memory that is used again at once."""

    def new_device(self, late: bool):
        """With copies that come late, or at once. Beside what DeviceSlots asks: `pending` copies, which `complete` ends
        well and `fail` badly, bytes `allocated`, and the bytes of a `place`."""
        raise NotImplementedError

    @initialize(n_slots=st.integers(0, ALL))
    def start(self, n_slots):
        self.device = self.new_device(late=True)
        self.in_ram = set(range(ALL))
        self.scratch = [source(0), source(1)]
        self.n_slots, self.slots = n_slots, slots_of(self.device, n_slots, self.found)
        larger = n_slots * int(KIND.sum()) // ALL
        smaller = n_slots * int((KIND == 0).sum()) // ALL
        self.planned = smaller * slot_bytes(source(0)) + larger * slot_bytes(source(1))

    def found(self, number):
        if number not in self.in_ram:
            return None
        scratch = self.scratch[KIND[number]]
        for w in (scratch.w1, scratch.w3, scratch.w2):
            for array in w.owners:
                array[:] = number + 1
        return scratch

    def read(self):
        """As a step does: every slot that the table names."""
        for number, slot in enumerate(self.slots.table.ravel().tolist()):
            if slot >= 0:
                for at, n_bytes in parts_of(self.slots.held[slot]):
                    assert (self.device.place(at, n_bytes) == number + 1).all(), f"slot {slot} is not expert {number}"

    def feed(self, data, n_tokens):
        near = data.draw(st.booleans())
        for layer in range(LAYERS):
            chosen = np.array(sorted(data.draw(st.sets(st.integers(0, PER_LAYER - 1), min_size=1, max_size=4))))
            closeness = -np.abs(np.arange(PER_LAYER) - chosen[0]) / PER_LAYER if near else None
            self.slots.used(layer, np.isin(np.arange(PER_LAYER), chosen).astype(int), closeness, n_tokens)
            self.device.complete(data.draw(st.integers(0, 2)), data.draw(st.integers(0, COPIES)))
            self.read()

    @rule(data=st.data(), n_tokens=st.sampled_from([1, 1, 7]), fails=st.booleans())
    def step(self, data, n_tokens, fails):
        for number in self.slots.begin_step():
            assert self.slots.table.flat[number] >= 0
        before = self.slots.table.copy()
        self.read()
        self.feed(data, n_tokens)
        assert (self.slots.table == before).all(), "the table of a step does not change"
        if fails:
            self.slots.abandon()
        else:
            self.slots.end_step(n_tokens)

    @rule(count=st.integers(1, COPIES), which=st.integers(0, COPIES))
    def copies_complete(self, count, which):
        self.device.complete(count, which)

    @rule(numbers=st.sets(st.integers(0, ALL - 1)))
    def others_are_in_ram(self, numbers):
        self.in_ram = numbers

    @precondition(lambda self: self.device.pending)
    @rule()
    def a_copy_fails(self):
        self.device.fail()
        with pytest.raises(OSError, match="a copy failed"):
            self.slots.begin_step()
        self.slots.begin_step()

    @rule()
    def start_again(self):
        """Another run that begins with what this one learned."""
        learned = self.slots.policy.learned()
        device = self.new_device(late=False)
        again = slots_of(device, self.n_slots)
        again.learn(learned)
        for name, array in again.policy.learned().items():
            assert np.array_equal(array, learned[name]), name
        again.begin_step()
        best = Divided([pool.n_slots for pool in again.pools], KIND)
        best.learn(learned)
        assert set(np.flatnonzero(again.table.ravel() >= 0)) == set(best.best().tolist()[:COPIES])

    @invariant()
    def nothing_is_lost(self):
        if not hasattr(self, "slots"):
            return
        slots, table = self.slots, self.slots.table.ravel()
        named = table[table >= 0].tolist()
        assert len(set(named)) == len(named), "one expert to a slot"
        assert self.device.allocated == slots.nbytes == self.planned, "bytes planned are bytes taken"
        free = [slot for one in slots._free for slot in one]
        assert sorted([*slots._slot.values(), *free]) == list(range(slots.n_slots))
        assert slots.policy.n_resident == len(slots._slot) <= slots.n_slots
        assert len(slots._copies) <= COPIES
        self.read()
