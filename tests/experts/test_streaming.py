"""Experts on demand: what is handed out is right, whatever the files do."""

import errno
import mmap
import shutil
import time

import numpy as np
import pytest
import tiny

from v4cli.errors import ModelError
from v4cli.experts import reader
from v4cli.experts.files import PAGE, ExpertFiles, File
from v4cli.experts.slots import ExpertStream
from v4cli.store.parts import EXPERT_ORDER
from v4cli.store.store import Store

N_LAYERS, PER_LAYER = tiny.STORE_LIKE["num_hidden_layers"], tiny.STORE_LIKE["n_routed_experts"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streaming")
    source = tiny.random_checkpoint(folder / "source", tiny.STORE_LIKE)
    return Store.open(tiny.make_store(source, folder / "store"))


def contents(store, expert: int) -> bytes:
    layer, number = divmod(expert, PER_LAYER)
    names = (f"layers.{layer}.ffn.experts.{number}.{name}" for name in EXPERT_ORDER)
    return b"".join(store.raw(name).tobytes() for name in names)


def bytes_of(stream, expert: int) -> bytes:
    begin, _ = stream.reader._place(stream.slots([expert])[0])
    return bytes(stream.reader._view[begin : begin + stream.reader.files.sizes[expert]])


def step(stream, store, asked: list[np.ndarray], n_tokens: int = 1) -> None:
    """One step over all layers, everything checked."""
    for layer, numbers in enumerate(asked):
        experts, served = np.sort(numbers) + layer * PER_LAYER, []
        for given in stream.serve(experts, np.ones(len(experts)), n_tokens):
            for expert in given:
                assert bytes_of(stream, expert) == contents(store, expert)
            served += given
        assert sorted(served) == experts.tolist()
    stream.end_step(n_tokens)


def random_steps(stream, store, count: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        asked = [rng.choice(PER_LAYER, 2, replace=False) for _ in range(N_LAYERS)]
        stream.expect((rng.choice(PER_LAYER, 2, replace=False) + PER_LAYER).tolist())
        stream.guess(2, (rng.choice(PER_LAYER, 2, replace=False) + 2 * PER_LAYER).tolist())
        step(stream, store, asked)


def settle(stream) -> None:
    """Until nothing is read any more."""
    while stream.reader._requests or stream.reader._outcome:
        stream._collect(wait=True)


@pytest.mark.parametrize("n_slots, spare", [(1, 1), (3, 2), (12, 4), (40, 4)])
def test_right_bytes_with_any_number_of_slots(store, n_slots, spare):
    stream = ExpertStream(ExpertFiles(store), n_slots, spare)
    random_steps(stream, store, 30)
    step(stream, store, [np.arange(PER_LAYER)] * N_LAYERS, n_tokens=64)
    random_steps(stream, store, 10)
    counts = stream.counts
    assert counts.hits + counts.misses == 40 * 2 * N_LAYERS + PER_LAYER * N_LAYERS
    assert counts.bytes_used == (counts.hits + counts.misses) * stream.reader.files.sizes[0]
    assert stream.policy.n_resident <= n_slots - spare
    stream.close()
    assert stream.counts.bytes_read == counts.misses * stream.reader.files.sizes[0] + stream.counts.bytes_wasted


def test_what_is_in_memory_is_read_once(store):
    stream = ExpertStream(ExpertFiles(store), N_LAYERS * PER_LAYER + 2, 2)
    for _ in range(3):
        step(stream, store, [np.arange(PER_LAYER)] * N_LAYERS, n_tokens=64)
    assert stream.counts.bytes_read == N_LAYERS * PER_LAYER * stream.reader.files.sizes[0]
    assert stream.counts.misses == N_LAYERS * PER_LAYER
    stream.close()


def test_expected_experts_are_read_before_they_are_asked_for(store):
    stream = ExpertStream(ExpertFiles(store), 8, 4)
    stream.expect([0, 1, 2])
    deadline = time.monotonic() + 10
    while stream.counts.bytes_read < 3 * stream.reader.files.sizes[0] and time.monotonic() < deadline:
        time.sleep(0.001)
    step(stream, store, [np.array([0, 1])])
    counts = stream.counts
    assert (counts.misses, counts.expected, counts.bytes_wasted) == (2, 2, stream.reader.files.sizes[0])
    stream.close()


@pytest.fixture
def one_thread(store, monkeypatch):
    """A stream whose only reading thread takes 5 ms for each page, guesses page by page."""
    monkeypatch.setattr(reader, "THREADS", 1)
    monkeypatch.setattr(reader, "PIECE", PAGE)
    monkeypatch.setattr(Faulty, "slow", 5e-3)
    stream = ExpertStream(ExpertFiles(store, Faulty), 12, 8)
    assert stream.reader.files.sizes[0] > 10 * PAGE
    yield stream
    stream.close()


def test_what_is_needed_now_overtakes_a_guess(one_thread):
    one_thread.reader.ask(0, 0, reader.Rank.SOON)
    one_thread.reader.ask(1, 1, reader.Rank.NOW)
    assert one_thread.reader.take(wait=True) == {1: None}
    assert one_thread.reader.take(wait=True) == {0: None}


def test_a_guess_is_given_up_in_the_middle(one_thread, store):
    whole = one_thread.reader.files.sizes[0]
    one_thread.guess(1, [PER_LAYER, PER_LAYER + 1])
    time.sleep(0.02)
    one_thread.guess(1, [PER_LAYER + 1])
    step(one_thread, store, [np.array([0, 1]), np.array([1, 2])])
    settle(one_thread)
    counts = one_thread.counts
    assert (counts.misses, counts.expected) == (4, 1)
    assert counts.bytes_read == 4 * whole + counts.bytes_wasted, "what was read of the wrong guess is told"
    assert 0 < counts.bytes_wasted < whole
    assert sum(map(len, one_thread._free)) + len(one_thread._slot) == 12


def test_a_second_start_reads_what_was_used(store):
    first = ExpertStream(ExpertFiles(store), 8, 4)
    for _ in range(10):
        step(first, store, [np.array([3, 5])] * 2)
    second = ExpertStream(ExpertFiles(store), 8, 4)
    second.learn(first.policy.learned())
    while any(not second._there[expert] for expert in list(second._slot)):
        second._collect(wait=True)
    step(second, store, [np.array([3, 5])] * 2)
    assert (second.counts.hits, second.counts.misses) == (4, 0)
    first.close()
    second.close()


class Faulty(File):
    """A file whose reads are short, and slow or failing when told to."""

    fail: int | None = None
    refuses_direct = False
    slow = 0.0

    def pread(self, target, offset):
        time.sleep(self.slow)
        if self.fail is not None:
            raise OSError(self.fail, "Input/output error")
        if self.direct and self.refuses_direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return super().pread(target[: PAGE if self.direct else PAGE + 512], offset)


@pytest.mark.parametrize("refuses_direct", [False, True])
def test_short_and_slow_reads(store, refuses_direct, monkeypatch):
    monkeypatch.setattr(Faulty, "slow", 1e-4)
    monkeypatch.setattr(Faulty, "refuses_direct", refuses_direct)
    stream = ExpertStream(ExpertFiles(store, Faulty), 6, 3)
    random_steps(stream, store, 5)
    stream.close()


def test_a_disk_error_is_told_and_what_follows_is_right(store, monkeypatch):
    stream = ExpertStream(ExpertFiles(store, Faulty), 6, 3)
    random_steps(stream, store, 3)
    monkeypatch.setattr(Faulty, "fail", errno.EIO)
    with pytest.raises(ModelError, match=r"layer-00\d-experts.*Input/output error"):
        random_steps(stream, store, 5)
    stream.abandon()
    monkeypatch.setattr(Faulty, "fail", None)
    random_steps(stream, store, 10)
    stream.close()


def test_scales_that_are_not_finite_are_told(store, tmp_path):
    damaged = tmp_path / "store"
    shutil.copytree(store.path, damaged)
    place = store.places[f"layers.1.ffn.experts.3.{EXPERT_ORDER[-1]}"]
    assert EXPERT_ORDER[-1].endswith(".scale")
    with (damaged / place.path.name).open("r+b") as file:
        file.seek(place.offset + place.spec.nbytes - 1)
        file.write(b"\xff")
    stream = ExpertStream(ExpertFiles(Store.open(damaged)), 6, 3)
    with pytest.raises(ModelError, match=f"{place.path.name}: expert 3 of layer 1 holds scales"):
        step(stream, store, [np.array([0, 1]), np.array([3])])
    stream.abandon()
    step(stream, store, [np.array([0, 1]), np.array([0, 2])])
    stream.close()


def test_a_changed_file_is_noticed(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * PAGE))
    file = File(path)
    with path.open("r+b") as other:
        other.write(b"changed")
    with pytest.raises(ModelError, match="changed while in use"):
        _aligned(file)
    path.write_bytes(bytes(PAGE))
    with pytest.raises(ModelError, match="changed while in use"):
        _aligned(file, PAGE)


def _aligned(file, offset: int = 0) -> None:
    """Read a page."""
    file.read_into(memoryview(mmap.mmap(-1, PAGE)), offset, PAGE)


def test_a_removed_file_stays_readable(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    file = File(path)
    path.unlink()
    _aligned(file)


def test_interrupted_steps_leave_no_slot_lost(store):
    stream = ExpertStream(ExpertFiles(store), 6, 3)
    for seed in range(10):
        served = stream.serve(np.arange(5), np.ones(5), 1)
        next(served)
        served.close()
        stream.abandon()
        random_steps(stream, store, 2, seed)
    settle(stream)
    assert sum(map(len, stream._free)) + len(stream._slot) == 6
    stream.close()


# Experts of several formats


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    source = tiny.random_checkpoint(folder / "source", tiny.STORE_LIKE)
    return Store.open(tiny.make_store(source, folder / "store", "own", recipe=tiny.MIXED))


def test_each_shape_has_slots_of_its_size_and_no_more_than_its_share(mixed):
    files = ExpertFiles(mixed)
    spare = 2 * len(files.shapes)
    stream = ExpertStream(files, len(files) // 2 + spare, spare)
    taken = {shape: stream.reader.shape_of.count(shape) for shape in range(len(files.shapes))}
    assert len(files.shapes) == 5 and files.counts == [files.shape_of.count(shape) for shape in taken]
    assert [taken[shape] - 2 for shape in taken] == [count // 2 for count in files.counts]
    room = sum(files.rooms[shape] for shape in files.shape_of) // len(files)
    held = sum((taken[shape] - 2) * files.rooms[shape] for shape in taken)
    assert held <= len(files) // 2 * (room + 1)
    assert stream.reader._memory.data.nbytes == held + 2 * sum(files.rooms)
    stream.close()


@pytest.mark.parametrize("n_slots, spare", [(1, 1), (12, 4), (40, 10)])
def test_right_bytes_whatever_the_shapes(mixed, n_slots, spare):
    stream = ExpertStream(ExpertFiles(mixed), n_slots, spare)
    random_steps(stream, mixed, 20)
    step(stream, mixed, [np.arange(PER_LAYER)] * N_LAYERS, n_tokens=64)
    stream.shrink((n_slots + spare) // 2)
    random_steps(stream, mixed, 10)
    settle(stream)
    assert stream.n_slots == (n_slots + spare) // 2 and stream.policy.n_resident <= stream.n_slots - spare
    again = ExpertStream(ExpertFiles(mixed), n_slots, spare)
    again.learn(stream.policy.learned())
    random_steps(again, mixed, 10)
    held = [stream.policy.kind[stream.policy.resident].tolist().count(kind) for kind in range(5)]
    assert all(n <= most for n, most in zip(held, stream.policy.places_of))
    stream.close()
    again.close()
