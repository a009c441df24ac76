"""Slots of a device: no step reads anything but what its table names, whatever is copied when."""

import numpy as np
import pytest
from devices import NumpyDevice
from hypothesis import settings
from slot_machine import PER_LAYER, SIZE, Slots, slots_of, source

from v4cli.errors import ResourceError
from v4cli.experts.device import ALIGN, parts_of, slot_bytes


class InNumpy(Slots):
    def new_device(self, late):
        return NumpyDevice(late=late)


InNumpy.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestSlots = InNumpy.TestCase


def test_an_expert_lies_in_a_slot_part_by_part():
    parts = parts_of(source(0))
    assert [n_bytes for _, n_bytes in parts] == [SIZE * SIZE // 2, SIZE] * 3
    assert slot_bytes(source(0)) == 3 * (SIZE * SIZE // 2 + ALIGN)


def test_a_device_without_the_memory_is_told():
    with pytest.raises(ResourceError, match="no memory on the device for 9 experts"):
        slots_of(NumpyDevice(room=9 * slot_bytes(source(0)) - 1), 9)
    assert slots_of(NumpyDevice(room=9 * slot_bytes(source(0))), 9).nbytes == 9 * slot_bytes(source(0))
    with pytest.raises(ValueError, match="32768 slots"):
        slots_of(NumpyDevice(), 1 << 15)


def test_slots_go_to_what_is_used_most():
    slots = slots_of(NumpyDevice(), 2)
    for used in ([0, 1], [0, 2], [0, 2], [0, 2], [0, 2]):
        slots.begin_step()
        slots.used(1, np.bincount(used, minlength=PER_LAYER), None, 1)
        slots.end_step(1)
    slots.begin_step()
    assert np.argwhere(slots.table >= 0).tolist() == [[1, 0], [1, 2]]


def test_a_slot_that_is_written_is_not_given_away():
    device = NumpyDevice(late=True)
    slots = slots_of(device, 1)
    for used in (3, 5, 5, 5, 5):
        slots.begin_step()
        slots.used(0, np.bincount([used], minlength=PER_LAYER), None, 1)
        slots.end_step(1)
    assert len(device.pending) == 1, "of expert 3, though 5 is likelier"
    device.complete()
    assert slots.begin_step() == [3]
    slots.used(0, np.bincount([5], minlength=PER_LAYER), None, 1)
    slots.end_step(1)
    assert (slots.table == -1).all() and len(device.pending) == 1
    device.complete()
    assert slots.begin_step() == [5]
