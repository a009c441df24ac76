"""Slots of a device: no step reads anything but what its table names, whatever is copied when."""

import numpy as np
import pytest
from devices import NumpyDevice
from hypothesis import settings
from slot_machine import LAYERS, PER_LAYER, SIZES, Slots, expert, source

from v4cli.errors import ResourceError
from v4cli.experts.device import ALIGN, DeviceSlots, Pool, parts_of, pools_of, slot_bytes


class InNumpy(Slots):
    def new_device(self, late):
        return NumpyDevice(late=late)


InNumpy.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestSlots = InNumpy.TestCase


def of_one_kind(device, n_slots):
    return DeviceSlots(device, np.zeros((LAYERS, PER_LAYER), np.int8), [Pool(n_slots, slot_bytes(source(0)))], small)


def small(number):
    return expert(SIZES[0], number + 1)


def test_an_expert_lies_in_a_slot_part_by_part():
    size = SIZES[0]
    parts = parts_of(source(0))
    assert [n_bytes for _, n_bytes in parts] == [size * size // 2, size] * 3
    assert slot_bytes(source(0)) == 3 * (size * size // 2 + ALIGN)


def test_a_device_without_the_memory_is_told():
    with pytest.raises(ResourceError, match="no memory on the device for 9 experts"):
        of_one_kind(NumpyDevice(room=9 * slot_bytes(source(0)) - 1), 9)
    assert of_one_kind(NumpyDevice(room=9 * slot_bytes(source(0))), 9).nbytes == 9 * slot_bytes(source(0))
    with pytest.raises(ValueError, match="32768 slots"):
        of_one_kind(NumpyDevice(), 1 << 15)


def test_slots_go_to_what_is_used_most():
    slots = of_one_kind(NumpyDevice(), 2)
    for used in ([0, 1], [0, 2], [0, 2], [0, 2], [0, 2]):
        slots.begin_step()
        slots.used(1, np.bincount(used, minlength=PER_LAYER), None, 1)
        slots.end_step(1)
    slots.begin_step()
    assert np.argwhere(slots.table >= 0).tolist() == [[1, 0], [1, 2]]


def test_a_slot_that_is_written_is_not_given_away():
    device = NumpyDevice(late=True)
    slots = of_one_kind(device, 1)
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


def test_slots_are_divided_as_experts_are_and_each_kind_takes_its_own_bytes():
    device, examples = NumpyDevice(), [small(0), expert(SIZES[1], 1)]
    kind = np.repeat([0, 1], [30, 10]).astype(np.int8)
    pools = pools_of(examples, kind, 22)
    assert pools == [Pool(16, slot_bytes(examples[0])), Pool(5, slot_bytes(examples[1]))]
    slots = DeviceSlots(device, kind.reshape(4, 10), pools, lambda number: None, spare=2)
    assert device.allocated == slots.nbytes == 16 * pools[0].n_bytes + (5 + 2) * pools[1].n_bytes
    at = [slots.address(slot) for slot in range(slots.n_slots + 2)]
    assert at == sorted(at) and at[0] == slots.at == slots.memory_at[1], "the larger ones first"
    assert set(np.diff(at).tolist()) == {pool.n_bytes for pool in pools} and at[21] == slots.passing_at
    assert [slots.memory_at[0] + slot * pools[0].n_bytes for slot in range(5, 21)] == at[5:21]
