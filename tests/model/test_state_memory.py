"""Memory that grows: what is written stays in place, what is given back is gone, a full disk loses nothing."""

import errno
import os

import numpy as np
import psutil
import pytest
from v4kernels.cpu.memory import STEP, Memory


@pytest.fixture(params=["ram", "folder"])
def memory(request, tmp_path):
    return Memory(tmp_path if request.param == "folder" else None)


def test_rows_never_move_and_keep_what_is_written(memory):
    first, second = memory.rows(100_000, 68), memory.rows(1000, 7)
    at = first.data.ctypes.data
    for n in (1, 700, 99_999):
        first.reserve(n)
        first.data[n - 1] = n % 256
    second.reserve(1000)
    second.data[:] = 9
    assert first.data.ctypes.data == at
    assert [int(first.data[n - 1, 67]) for n in (1, 700, 99_999)] == [1, 700 % 256, 99_999 % 256]
    with pytest.raises(MemoryError, match="context is full"):
        second.reserve(1001)
    assert first.nbytes == -(-99_999 * 68 // 4096) * 4096


def test_room_for_a_million_tokens_costs_nothing_until_it_is_written(memory):
    before = psutil.Process().memory_info().rss
    held = [memory.rows(1 << 18, 584) for _ in range(21)]
    assert psutil.Process().memory_info().rss - before < 8 << 20
    for rows in held:
        rows.reserve(100)
        rows.data[:100] = 1
    assert psutil.Process().memory_info().rss - before < 16 << 20
    assert sum(rows.nbytes for rows in held) == 21 * 15 * 4096


def test_trimmed_rows_are_given_back_and_can_be_written_again():
    rows = Memory().rows(1 << 20, 64)
    rows.reserve(1 << 20)
    rows.data[:] = 5
    before = psutil.Process().memory_info().rss
    rows.trim(1000)
    assert before - psutil.Process().memory_info().rss > 50 << 20
    assert rows.data[999, 0] == 5
    rows.reserve(2000)
    rows.data[1000:2000] = 6
    assert rows.data[:2000].sum() == 64 * (5000 + 6000)


def test_full_disk_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    rows = Memory(tmp_path).rows(1 << 20, 64)
    rows.reserve(10)
    rows.data[:10] = 3

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    rows.reserve(STEP // 64)  # within what is taken already
    with pytest.raises(MemoryError, match="No space left"):
        rows.reserve(STEP // 64 + 1)
    assert rows.used == STEP // 64 and (rows.data[:10] == 3).all()


def test_file_goes_with_the_process_and_a_missing_folder_is_an_error(tmp_path):
    rows = Memory(tmp_path).rows(1000, 64)
    rows.reserve(1000)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(MemoryError, match="cannot hold the KV cache"):
        Memory(tmp_path / "absent")
    with pytest.raises(MemoryError, match="no room for a context"):
        Memory().rows(1 << 40, 1 << 20)
    np.testing.assert_equal(rows.data.shape, (1000, 64))
