"""Kernels measured on the PTX machine, by a clock that goes on with every launch: what is measured is what is said."""

from dataclasses import replace
from itertools import pairwise

import pytest
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
from emulated import Emulated
from v4kernels.triton.device import Launch, Move

from v4cli.bench import gpu_kernels as gpu_kernels_bench
from v4cli.bench.gpu_clock import Stopwatch
from v4cli.bench.gpu_handoff import round_trip
from v4cli.bench.gpu_kernels import beside, measure
from v4cli.bench.gpu_limits import Probes
from v4cli.bench.gpu_memory import Memory
from v4cli.bench.gpu_ops import Sizes, cases, gemv
from v4cli.bench.gpu_part import Part
from v4cli.bench.synthetic import shape

LIBRARY = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
COSTS = {"read_words": 3e-3, "touch": 1e-6, "gather_rows": 5e-5, "linear_int8": 2e-6, "gate_up": 4e-6, "down": 3e-6}
COSTS |= {"attend_scores": 1e-6, "attend_weights": 2e-6, "attend_values": 4e-6, "attend_merge": 8e-6, "gemm": 1e-4}
COSTS |= {"index_scores": 6e-6, "index_choice": 7e-6, "hyper_products": 1e-6, "hyper_pre": 2e-6, "hyper_post": 4e-6}
COSTS |= {"linear_int4": 5e-6, "linear_fp4": 6e-6}
PER_BYTE = 1e-9  # of a move
SMALL = replace(shape("tiny", 1), index_topk=32, sliding_window=16)
SIZES = Sizes(SMALL, rotated=30_000, keys=(48, 300), scored=(100, 5000), tiles=(32,), prompt=(70,))
PROBES = Probes(read=1 << 18, copied=(1 << 12, 1 << 14), rows=3, among=50, launches=20)


class Costed(Emulated):
    """A device with a clock of its own. What is launched again as it was is not run again."""

    def __init__(self, room: int = 1 << 32):
        super().__init__("sm_89", room)
        self.now, self.seen, self.ran = 0.0, set(), []

    def run(self, node: Launch | Move) -> None:
        if isinstance(node, Move):
            self.now += node.n_bytes * PER_BYTE
            super().run(node)
            return
        name = node.kernel.fn.__name__
        self.now += COSTS[name]
        self.ran.append(node)
        key = name, node.grid, node.arguments, tuple(node.constants.items())
        if key not in self.seen:
            self.seen.add(key)
            super().run(node)

    def clock(self) -> float:
        return self.now


@pytest.fixture(scope="module", autouse=True)
def without_server():
    """A clock that goes on by launches knows nothing of threads; their hand-off has a test of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_kernels_bench, "round_trip", lambda device: 5.0)
        yield


@LIBRARY
def test_a_hand_off_takes_a_time_by_the_devices_clock():
    device = Emulated()
    assert 0 < round_trip(device, layers=2, steps=2) < 1e9 and device.nbytes == 0


def watch_of(device: Costed) -> Stopwatch:
    return Stopwatch(device, device.clock, round_s=0.0)


@pytest.fixture(scope="module")
def everything(without_server):
    device = Costed()
    part = Part(None, 1e9)
    measure(device, watch_of(device), part, SIZES, PROBES)
    return device, part.found


def test_all_of_it_is_measured_and_given_back(everything):
    device, found = everything
    assert found["missing"] == {} and device.nbytes == 0
    names = {row["op"] for row in found["kernels"]}
    assert {"int8 linear", "int4 linear", "fp4 linear", "fp4 experts", "attention", "index scores"} <= names
    assert {"index choice", "hyper-connection", "int8 product", "fp4 product"} <= names
    shapes = [row["shape"] for row in found["kernels"] if row["op"] == "int8 linear"]
    assert len(shapes) == len(SIZES.dense()) and len(set(shapes)) == len(shapes)


def test_times_are_those_of_the_device(everything):
    _, found = everything
    us = {row["op"]: row["us"] for row in found["kernels"]}
    assert us["int8 linear"] == pytest.approx(2) and us["fp4 experts"] == pytest.approx(4 + 3)
    assert us["attention"] == pytest.approx(1 + 2 + 4 + 8) and us["hyper-connection"] == pytest.approx(1 + 2 + 4)
    by_shape = {row["shape"]: row["us"] for row in found["kernels"] if row["op"] == "index choice"}
    assert by_shape == {"100 keys": pytest.approx(7), "5000 keys": pytest.approx(2 * 7)}, "a level each"


def test_rates_are_bytes_by_time_beside_read_bandwidth(everything):
    _, found = everything
    limits = found["limits"]
    assert limits["read"] == pytest.approx(PROBES.read / 3e-3 / 1e9)
    assert limits["launch_us"] == limits["node_us"] == pytest.approx(1) and limits["gather_us"] == pytest.approx(50)
    copies = [limits[f"{way}_card_{size}_kib"] for way in ("to", "from") for size in (4, 16)]
    assert copies == [pytest.approx(1)] * 4
    for row in found["kernels"]:
        assert row["rate"] == pytest.approx(row["bytes"] / row["us"] / 1e3)
        assert row["of_read"] == pytest.approx(row["rate"] / limits["read"])
    (row,) = [row for row in found["kernels"] if row["shape"].startswith("wq_b 256x32")][:1]
    assert row["bytes"] == 256 * 32 * 17 // 16 and row["gmacs"] == pytest.approx(256 * 32 / 2e-6 / 1e9)


def test_weights_rotate_through_more_than_a_cache_holds():
    device = Costed()
    with Memory(device) as memory:
        for case in gemv(SIZES, "int8", "wq_b")(memory):
            device.ran.clear()
            for i in range(case.count):
                case.work(i)
            at = [node.arguments[0] for node in device.ran]
            assert len(set(at)) * case.n_bytes >= SIZES.rotated
            assert all(a != b for a, b in pairwise(at))


def test_what_there_is_no_time_for_is_named():
    device, now = Costed(), [0.0]
    part = Part(None, 10, lambda: now[0])
    now[0] = 11
    measure(device, watch_of(device), part, SIZES, PROBES)
    assert part.found["missing"] == {name: "no time was left" for name, _ in cases(SIZES)}


def test_a_failure_is_one_line_and_the_rest_goes_on(tmp_path):
    device = Costed(room=1 << 19)
    part = Part(tmp_path / "found.json", 1e9)
    measure(device, watch_of(device), part, replace(SIZES, keys=(300_000,)), PROBES, only="attention")
    assert "MemoryError" in part.found["missing"]["attention, 300000 keys"] and device.nbytes == 0
    measure(device, watch_of(device), part, replace(SIZES, keys=(48,)), PROBES, only="attention")
    assert [row["shape"] for row in part.found["kernels"]] == ["48 keys"]
    assert '"48 keys"' in (tmp_path / "found.json").read_text()


class Host:
    """A device that does work at once, and again when it is replayed."""

    def __init__(self):
        self.now = 0.0

    def synchronize(self) -> None: ...


def test_a_round_is_long_enough_for_the_clock():
    device = Host()
    calls = []

    def work():
        calls.append(1)
        device.now += 1e-3

    watch = Stopwatch(device, lambda: device.now, round_s=0.02)
    assert watch.typical(work) == pytest.approx(1e-3)
    assert len(calls) == 1 + 1 + 5 * 20


def test_other_libraries_are_measured_at_the_same_shapes():
    class Recording:
        def synchronize(self) -> None: ...

        def record(self):
            return self

        def __enter__(self):
            return self

        def __exit__(self, *failure): ...

        def replay(self):
            now[0] += 1e-3

    now, made = [0.0], []

    def make(rows, cols, tokens, where):
        made.append((rows, cols, tokens, where))
        return lambda: None, 2 * rows * cols

    part = Part(None, 1e9)
    part.found["limits"] = {"read": 2.0}
    watch = Stopwatch(Recording(), lambda: now[0], round_s=0.0)
    beside(watch, part, SIZES, "cpu", {"other": make})
    assert part.found["missing"] == {} and {row["op"] for row in part.found["beside"]} == {"other"}
    assert {shape for shape in made} == {(*s, 1, "cpu") for s in SIZES.dense().values()} | {(32, 64, 70, "cpu")}
    row = next(row for row in part.found["beside"] if row["shape"].startswith("wq_b"))
    copies = made.count((256, 32, 1, "cpu"))
    assert copies * row["bytes"] >= SIZES.rotated and row["us"] == pytest.approx(1e3 / copies)
