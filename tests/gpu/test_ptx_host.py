"""Kernels and a host that work at the same time: what each sees of the other's stores, and no sooner than it must."""

import threading
import time

import numpy as np
import ptx
import pytest
from assembly import assemble
from ptx import host

FLAG, DATA, ANSWER, DONE = 0, 64, 128, 192  # bytes of mapped memory


class Memory:
    """256 bytes of mapped memory, at %rd0 of a kernel. `work` is done on their words when the kernel looks at them for
    the first time, or, `behind`, for the second time."""

    def __init__(self, monkeypatch, work=lambda words: None, behind=False):
        self.device = ptx.DeviceMemory()
        self.buffer = self.device.place("mapped", 256, hosted=True)
        self.words = self.buffer.bytes.view(np.int32)
        self.turns, self.work, self.when = 0, work, 2 if behind else 1
        monkeypatch.setattr(host, "turn", self.turn)

    def turn(self):
        self.turns += 1
        if self.turns == self.when:
            self.work(self.words)

    def run(self, body: str, threads: int = 32) -> np.ndarray:
        ptx.launch_in(self.device, assemble(body, 1, threads), (1,), [self.buffer.address])
        return self.words


def post(words):
    """Data, then a flag."""
    words[DATA // 4] = 7
    words[FLAG // 4] = 1


WAIT = f"""
    setp.eq.u32 %p1, %r0, 0;
    ld.global.b32 %r9, [%rd0+{DATA}];
$WAIT:
    {{load}}
    setp.eq.b32 %p2, %r3, 0;
    @%p2 bra $WAIT;
    {{between}}
    ld.global.b32 %r4, [%rd0+{DATA}];
    @%p1 st.global.b32 [%rd0+{ANSWER}], %r4;
"""


@pytest.fixture
def answer(monkeypatch):
    """Of a kernel that reads data, waits for a flag by some instructions, and reads the data again."""

    def answer(load: str, between: str = "", threads: int = 32) -> int:
        words = Memory(monkeypatch, post, behind=True).run(WAIT.format(load=load, between=between), threads)
        return int(words[ANSWER // 4])

    return answer


@pytest.mark.parametrize("load", ["ld.acquire.sys.global.b32", "ld.global.sys.acquire.b32"])
def test_what_the_host_wrote_in_front_of_a_flag_is_there_for_who_acquires_it(answer, load):
    assert answer(f"{load} %r3, [%rd0];") == 7


@pytest.mark.parametrize("load", ["ld.volatile.global.b32", "ld.relaxed.sys.global.b32"])
def test_a_load_that_does_not_acquire_takes_a_fence_of_the_system(answer, load):
    assert answer(f"{load} %r3, [%rd0];") == 0
    for fence in ("fence.acq_rel.sys;", "fence.sc.sys;", "membar.sys;"):
        assert answer(f"{load} %r3, [%rd0];", fence) == 7
    for fence in ("fence.acq_rel.gpu;", "fence.sc.cta;", "membar.gl;"):
        assert answer(f"{load} %r3, [%rd0];", fence) == 0


@pytest.mark.parametrize(
    "opcode, operands, want",
    [
        ("atom.global.sys.acquire.or.b32", "0", 7),
        ("atom.global.acq_rel.sys.cas.b32", "9, 9", 7),
        ("atom.global.sys.relaxed.add.u32", "0", 0),
        ("atom.global.sys.release.max.s32", "0", 0),
    ],
)
def test_atomic_operations_wait_as_loads_do(answer, opcode, operands, want):
    load = f"@%p1 {opcode} %r3, [%rd0], {operands};\nshfl.sync.idx.b32 %r3, %r3, 0, 31, -1;"
    assert answer(load, "bar.warp.sync -1;") == want
    if want:
        with pytest.raises(ptx.Race, match="another thread wrote"):  # of the 31 that did not look
            answer(load)


@pytest.mark.parametrize("load, want", [("ld.global", 0), ("ld.acquire.gpu.global", 0), ("ld.volatile.global", 1)])
def test_a_plain_load_sees_nothing_new_of_the_host_nor_does_one_of_a_narrower_scope(monkeypatch, load, want):
    body = f"ld.volatile.global.b32 %r4, [%rd0+{DONE}];\n{load}.b32 %r3, [%rd0];\nst.global.b32 [%rd0+{ANSWER}], %r3;"
    assert Memory(monkeypatch, post).run(body)[ANSWER // 4] == want


def test_other_threads_see_what_one_acquired_behind_a_barrier(monkeypatch):
    body = f"""
        setp.eq.u32 %p1, %r0, 0;
        @%p1 ld.acquire.sys.global.b32 %r3, [%rd0];
        {{barrier}}
        setp.eq.u32 %p2, %r0, 40;
        @%p2 ld.global.b32 %r4, [%rd0+{DATA}];
        @%p2 st.global.b32 [%rd0+{ANSWER}], %r4;
    """
    assert Memory(monkeypatch, post).run(body.format(barrier="bar.sync 0;"), 64)[ANSWER // 4] == 7
    for barrier in ("", "bar.warp.sync -1;"):
        with pytest.raises(ptx.Race, match="another thread wrote"):
            Memory(monkeypatch, post).run(body.format(barrier=barrier), 64)


@pytest.mark.parametrize(
    "flag, seen",
    [
        ("@%p1 st.release.sys.global.b32 [%rd0], 1;", 9),
        ("@%p1 atom.global.sys.release.exch.b32 %r3, [%rd0], 1;", 9),
        ("fence.acq_rel.sys;\n@%p1 st.relaxed.sys.global.b32 [%rd0], 1;", 9),
        ("@%p1 st.relaxed.sys.global.b32 [%rd0], 1;", 0),
        ("@%p1 st.volatile.global.b32 [%rd0], 1;", 0),
        ("@%p1 st.release.gpu.global.b32 [%rd0], 1;", None),
        ("fence.acq_rel.gpu;\n@%p1 st.relaxed.sys.global.b32 [%rd0], 1;", 0),
    ],
)
def test_what_a_kernel_wrote_is_there_for_the_host_once_it_is_released(monkeypatch, flag, seen):
    """Thread 40 writes data, all meet, thread 0 sets a flag, and the host looks. None: not even the flag."""
    body = f"""
        setp.eq.u32 %p1, %r0, 0;
        setp.eq.u32 %p2, %r0, 40;
        @%p2 st.global.b32 [%rd0+{DATA}], 9;
        {{barrier}}
        {flag}
        @%p1 ld.volatile.global.b32 %r4, [%rd0+{DONE}];
    """
    looked = []
    look = lambda words: looked.append((words[FLAG // 4], words[DATA // 4]))  # noqa: E731
    memory = Memory(monkeypatch, look, behind="atom" in flag)  # which loads too
    words = memory.run(body.format(barrier="bar.sync 0;"), 64)
    assert looked == [(0, 0) if seen is None else (1, seen)]
    assert words[FLAG // 4] == 1 and words[DATA // 4] == 9  # when the kernel has ended
    if seen and "fence" not in flag:
        looked.clear()
        Memory(monkeypatch, look, behind="atom" in flag).run(body.format(barrier=""), 64)
        assert looked == [(1, 0)]  # in front of no barrier


def test_a_thread_sees_what_it_wrote_itself_whatever_the_host_has(monkeypatch):
    body = f"""
        st.global.b32 [%rd0+{DATA}], 5;
        ld.volatile.global.b32 %r3, [%rd0+{DATA}];
        st.global.b32 [%rd0+{ANSWER}], %r3;
    """
    assert Memory(monkeypatch, post).run(body)[ANSWER // 4] == 5


def test_warps_that_each_look_for_themselves_may_part(answer):
    load = "ld.acquire.sys.global.b32 %r3, [%rd0];"
    with pytest.raises(ptx.NotRepeatable, match="each warp may see something else"):
        answer(load, threads=64)


@pytest.mark.parametrize(
    "opcode, operands, want",
    [
        ("add.u32", "3", 13),
        ("add.s32", "-3", 7),
        ("min.s32", "-1", -1),
        ("min.u32", "-1", 10),
        ("max.u32", "-1", -1),
        ("and.b32", "3", 2),
        ("or.b32", "5", 15),
        ("xor.b32", "3", 9),
        ("exch.b32", "3", 3),
        ("cas.b32", "10, 4", 4),
        ("cas.b32", "11, 4", 10),
    ],
)
def test_atomic_operations_give_what_was_there(opcode, operands, want):
    memory = ptx.DeviceMemory()
    at = memory.place("words", 8).address
    memory.at(at, 4).view(np.int32)[:] = 10
    body = f"""
        setp.eq.u32 %p1, %r0, 3;
        @%p1 atom.global.{opcode} %r3, [%rd0], {operands};
        @%p1 st.global.b32 [%rd0+4], %r3;
    """
    ptx.launch_in(memory, assemble(body, 1), (1,), [at])
    assert memory.at(at, 8).view(np.int32).tolist() == [want, 10]


def test_an_order_of_atomic_operations_is_a_fault_where_results_tell_it():
    memory = ptx.DeviceMemory()
    at = memory.place("word", 4).address
    add = "atom.global.add.u32 %r3, [%rd0], 1;"
    with pytest.raises(ptx.NotRepeatable, match="depends on their order"):
        ptx.launch_in(memory, assemble(add, 1), (1,), [at])
    with pytest.raises(ptx.NotRepeatable, match="depends on their order"):
        ptx.launch_in(memory, assemble(f"setp.eq.u32 %p1, %r0, 0;\n@%p1 {add}", 1), (2,), [at])


def test_time_goes_on():
    memory = ptx.DeviceMemory()
    at = memory.place("times", 16).address
    body = "{read}\nnanosleep.u32 1000000;\nmov.u64 %rd5, %globaltimer;\nst.global.v2.b64 [%rd0], {{%rd4, %rd5}};"
    before = time.monotonic_ns()
    ptx.launch_in(memory, assemble(body.format(read="mov.u64 %rd4, %globaltimer;"), 1), (1,), [at])
    first, second = memory.at(at, 16).view(np.int64)
    assert before <= first and first + 1000000 <= second <= time.monotonic_ns()
    with pytest.raises(ptx.Uninitialised):
        ptx.launch_in(memory, assemble(body.format(read=""), 1), (1,), [at])


def test_a_kernel_and_a_thread_take_turns():
    """Ten rounds: the kernel posts a number, the thread answers with its square, and the kernel adds it up."""
    memory = ptx.DeviceMemory()
    buffer = memory.place("mapped", 256, hosted=True)
    words = buffer.bytes.view(np.int32)

    def square():
        for i in range(1, 11):
            while words[FLAG // 4] != i:
                time.sleep(0)
            words[ANSWER // 4] = words[DATA // 4] ** 2
            words[DONE // 4] = i

    body = f"""
        setp.eq.u32 %p1, %r0, 0;
        mov.b32 %r3, 0;
        mov.b32 %r4, 0;
    $ROUND:
        add.s32 %r3, %r3, 1;
        add.s32 %r5, %r3, 100;
        @%p1 st.global.b32 [%rd0+{DATA}], %r5;
        @%p1 st.release.sys.global.b32 [%rd0+{FLAG}], %r3;
    $WAIT:
        ld.acquire.sys.global.b32 %r6, [%rd0+{DONE}];
        setp.ne.b32 %p2, %r6, %r3;
        @%p2 bra $WAIT;
        ld.global.b32 %r7, [%rd0+{ANSWER}];
        add.s32 %r4, %r4, %r7;
        setp.lt.s32 %p2, %r3, 10;
        @%p2 bra $ROUND;
        @%p1 st.global.b32 [%rd0+{DATA}], %r4;
    """
    partner = threading.Thread(target=square, daemon=True)
    partner.start()
    ptx.launch_in(memory, assemble(body, 1), (1,), [buffer.address])
    partner.join()
    assert words[DATA // 4] == sum(i * i for i in range(101, 111))
