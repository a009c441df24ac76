"""What a device is for: the same of the one in the PTX machine and, where there is one, of a GPU."""

import threading

import numpy as np
import pytest

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import small_kernels
from emulated import Emulated

RNG = np.random.default_rng(5)
N = 128  # threads of a block: each has a number of its own


@pytest.fixture(params=["emulated", pytest.param("card", marks=pytest.mark.device)])
def device(request):
    return Emulated() if request.param == "emulated" else request.getfixturevalue("card")


def floats(device, values) -> int:
    address = device.alloc(4 * len(values))
    device.write(address, np.asarray(values, np.float32))
    return address


def add(device, a, b, out):
    device.launch(small_kernels.add, (1,), (a, b, out, N), {"BLOCK": N})


def test_memory_is_zero_aligned_and_stays_from_launch_to_launch(device):
    a, b, out = floats(device, np.arange(N)), floats(device, np.full(N, 2)), device.alloc(4 * N)
    assert not device.read(out, 4 * N).any() and not any(address % 256 for address in (a, b, out))
    add(device, a, b, out)
    add(device, out, b, a)
    assert np.array_equal(device.read(a, 4 * N).view(np.float32), np.arange(N) + 4)


def test_what_was_written_may_change_and_what_was_read_is_kept(device):
    values = np.arange(N, dtype=np.float32)
    at = floats(device, values)
    values[:] = 0
    read = device.read(at, 4 * N)
    device.write(at + 4, np.full(2, 9, np.float32))
    assert np.array_equal(read.view(np.float32), np.arange(N))
    assert device.read(at, 16).view(np.float32).tolist() == [0, 9, 9, 3]


def test_memory_that_is_zero_again_is_given_again(device):
    at = floats(device, np.ones(N))
    device.free(at)
    assert not device.read(device.alloc(4 * N), 4 * N).any()
    with pytest.raises(ValueError, match="nothing was allocated"):
        device.free(1)


def test_a_table_of_addresses_leads_kernels_to_memory_that_no_argument_names(device):
    rows = [floats(device, RNG.random(N)) for _ in range(3)]
    table, out = device.alloc(8 * 3), device.alloc(4 * 3 * N)
    device.write(table, np.array(rows, np.int64))
    device.launch(small_kernels.gather, (3,), (table, out), {"N": N})
    want = np.concatenate([device.read(row, 4 * N) for row in rows])
    assert np.array_equal(device.read(out, 4 * 3 * N), want)


def test_moves_are_made_in_the_order_of_launches(device):
    a, b, out = floats(device, np.arange(N)), floats(device, np.ones(N)), device.alloc(4 * N)
    host, at = device.mapped(4 * N)
    add(device, a, b, out)
    device.move(at, out, 4 * N)
    device.move(a, b, 4 * (N // 2))
    add(device, a, b, out)
    assert np.array_equal(
        device.read(out, 4 * N).view(np.float32), np.where(np.arange(N) < N // 2, 2, np.arange(N) + 1)
    )
    assert np.array_equal(host.view(np.float32), np.arange(N) + 1)


def test_a_graph_runs_what_was_recorded_whenever_it_is_replayed(device):
    a, b, out = floats(device, np.arange(N)), floats(device, np.ones(N)), device.alloc(4 * N)
    host, at = device.mapped(4 * N)
    with device.record() as graph:
        device.move(a, at, 4 * N)
        add(device, a, b, out)
        add(device, out, b, out)
    assert not device.read(out, 4 * N).any()
    for first in (5, 7):
        host.view(np.float32)[:] = np.arange(N) + first
        graph.replay()
        assert np.array_equal(device.read(out, 4 * N).view(np.float32), np.arange(N) + first + 2)


def test_nothing_but_launches_and_moves_is_recorded(device):
    a = device.alloc(4 * N)
    with device.record() as graph:
        add(device, a, a, a)
    for forbidden in (
        lambda: device.read(a, 4),
        lambda: device.write(a, np.zeros(1, np.float32)),
        lambda: device.alloc(4),
        lambda: device.mapped(4),
        lambda: device.free(a),
        lambda: device.copy([]),
        lambda: device.completed(None),
        device.synchronize,
        graph.replay,
        lambda: device.record().__enter__(),
    ):
        with pytest.raises(RuntimeError, match="while launches are recorded"), device.record():
            forbidden()
    device.read(a, 4)


def test_a_launch_takes_what_fits_the_kernel(device):
    a, out = device.alloc(4 * N), device.alloc(4 * N)
    with pytest.raises(TypeError, match="add takes 4 arguments, not 3"):
        device.launch(small_kernels.add, (1,), (a, a, out), {"BLOCK": N})
    with pytest.raises(TypeError, match="constants BLOCK"):
        device.launch(small_kernels.add, (1,), (a, a, out, N), {})
    with pytest.raises(ValueError, match=r"out at 0x[0-9a-f]+, no multiple of 16"):
        add(device, a, a, out + 4)
    with device.record(), pytest.raises(TypeError):
        device.launch(small_kernels.add, (1,), (a,), {"BLOCK": N})


def test_a_copy_is_there_when_its_ticket_is_completed(device):
    at, data = device.alloc(8), np.arange(8, dtype=np.uint8)
    ticket = device.copy([(at, data[:4]), (at + 4, data[4:])])
    want = data.copy()
    data[:] = 9
    while not device.completed(ticket):
        pass
    assert np.array_equal(device.read(at, 8), want)


def test_a_kernel_and_a_thread_answer_each_other_through_mapped_memory(device):
    rounds, ended = 20, []
    host, at = device.mapped(256 + 8 * N)
    words = host.view(np.int32)
    posted, answered = words[0:1], words[16:17]
    data, answer = words[64 : 64 + N], words[64 + N :]

    def work():
        for i in range(1, rounds + 1):
            while posted[0] != i:
                pass
            answer[:] = data**2
            answered[0] = i
        ended.append(True)

    partner = threading.Thread(target=work, daemon=True)
    partner.start()
    out = device.alloc(4 * N)
    arguments = (at, at + 256, at + 64, at + 256 + 4 * N, out, rounds)
    device.launch(small_kernels.squares, (1,), arguments, {"N": N})
    got = device.read(out, 4 * N).view(np.int32)
    partner.join()
    assert ended and np.array_equal(got, sum((i + np.arange(N)) ** 2 for i in range(1, rounds + 1)))
