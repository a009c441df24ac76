"""The hand-off between a device and the thread that computes what it lacks: every job once, its bits, and no hang."""

import ctypes
import gc
import os
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
from v4kernels import native
from v4kernels.cpu import ExpertTable, PackedWeight
from v4kernels.cpu.serve import HEAD, Ring, ServedLayer, Server, Stopped, job_dtype
from v4kernels.tree import Expert

pytestmark = pytest.mark.skipif(not native.available(), reason="needs the kernel library")
DIM, INTER, N_EXPERTS, LAYERS, PAIRS, LIMIT = 64, 32, 8, 2, 6, 10.0
LONG = 60.0  # seconds nothing here takes
RNG = np.random.default_rng(0)


def random_expert() -> Expert[PackedWeight]:
    def weight(rows, cols):
        codes = RNG.integers(0, 256, (rows, cols // 2), np.uint8)
        return PackedWeight.of("fp4", codes, np.full((rows, cols // native.GROUP), 124, np.uint8))

    return Expert(w1=weight(INTER, DIM), w3=weight(INTER, DIM), w2=weight(DIM, INTER))


EXPERTS = [[random_expert() for _ in range(N_EXPERTS)] for _ in range(LAYERS)]


@pytest.fixture
def served():
    """A ring and its server, which is stopped; `missing`: experts that are not in memory."""
    servers = []

    def served(n_jobs=2, missing=(), fetch=None, timeout_s=LONG):
        ring = Ring(n_jobs, PAIRS, DIM)
        tables = [[None if e in missing else expert for e, expert in enumerate(layer)] for layer in EXPERTS]
        layers = [ServedLayer(ExpertTable(table), LIMIT) for table in tables]
        servers.append(Server(ring, layers, (lambda number: fetch(ring.job(number))) if fetch else None, timeout_s))
        return ring, servers[-1]

    yield served
    for server in servers:
        server.stop()


def random_job(rng, n_rows=2, n=PAIRS):
    """Arguments of Job.fill."""
    x = rng.standard_normal((n_rows, DIM), np.float32)
    row = rng.integers(0, n_rows, n, np.int32)
    return int(rng.integers(LAYERS)), x, row, rng.integers(0, N_EXPERTS, n, np.int32), rng.random(n, np.float32)


def post(ring, arguments) -> int:
    number = ring.posted + 1
    ring.job(number).fill(*arguments)
    ring.post(number)
    return number


def experts(layer, x, ids, weights, out) -> np.ndarray:
    """v4k_experts: x (n, D), ids and weights (n, k), added to out."""
    table, x = ExpertTable(EXPERTS[layer]), np.ascontiguousarray(x)
    ids, weights = np.ascontiguousarray(ids, np.int64), np.ascontiguousarray(weights, np.float32)
    at = (x.ctypes.data, len(x), ids.ctypes.data, weights.ctypes.data, ids.shape[1], LIMIT, out.ctypes.data)
    native.checked(native.library().v4k_experts(table.at, table.n, None, *at))
    return out


def pairs(layer, x, row, expert, weight) -> np.ndarray:
    """What y must be: each pair as a row of its own."""
    return experts(layer, x[row], expert[:, None], weight[:, None], np.zeros((len(row), DIM), np.float32))


def test_the_ring_lies_as_the_header_says():
    assert [HEAD.fields[name][1] for name in HEAD.names] == [0, 64, 128, 192, 256]
    job = job_dtype(PAIRS, DIM)
    assert [job.fields[name][1] for name in job.names] == [0, 8, 16, 24, 64, 128, 192, 256, 256 + 4 * PAIRS * DIM]
    for n_jobs, n_pairs, dim in ((1, 1, 32), (3, 17, 96), (4, 48, 4096)):
        assert Ring(n_jobs, n_pairs, dim).nbytes == HEAD.itemsize + n_jobs * job_dtype(n_pairs, dim).itemsize
    for sizes in ((0, 1, 32), (1, 0, 32), (1, 1, 33), (1, 1 << 40, 32)):
        with pytest.raises(ValueError, match="no ring"):
            Ring(*sizes)


def test_results_added_by_ascending_expert_are_the_experts_sum(served):
    """Of any split between the two sides, here a device that computes its pairs by the same kernel."""
    ring, server = served()
    rng, k = np.random.default_rng(1), 3
    server.begin()
    for _ in range(200):
        layer, x = int(rng.integers(LAYERS)), rng.standard_normal((2, DIM), np.float32)
        ids = np.array([rng.choice(N_EXPERTS, k, replace=False) for _ in range(2)])
        weights, base = rng.random((2, k), np.float32), rng.standard_normal((2, DIM), np.float32)
        row, expert, weight = np.repeat([0, 1], k), ids.ravel(), weights.ravel()
        missed = rng.random(2 * k) < rng.random()
        number = post(ring, (layer, x, row[missed], expert[missed], weight[missed]))
        y = np.empty((2 * k, DIM), np.float32)
        y[~missed] = pairs(layer, x, row[~missed], expert[~missed], weight[~missed])
        server.wait(number)
        y[missed] = ring.job(number).y[: missed.sum()]
        out = base.copy()
        for i in np.argsort(expert, kind="stable"):
            out[row[i]] += y[i]
        assert out.tobytes() == experts(layer, x, ids, weights, base.copy()).tobytes()
    server.rest()


def rounds(ring, server, count, rng) -> None:
    """Jobs of several steps, some on their way at a time, each compared."""
    jobs = [random_job(rng, n=n) for n in (*range(PAIRS + 1), 2, 2)]
    expected = [pairs(*job) for job in jobs]
    for start in range(0, count, 1000):
        server.begin()
        flying = []
        for i in range(start, min(start + 1000, count)):
            if len(flying) == ring.n_jobs:
                settle(ring, server, flying, expected)
            chosen = i * 7 % len(jobs)
            flying.append((post(ring, jobs[chosen]), chosen))
        while flying:
            settle(ring, server, flying, expected)
        server.rest()


def settle(ring, server, flying, expected) -> None:
    number, chosen = flying.pop(0)
    server.wait(number)
    want = expected[chosen]
    assert np.array_equal(ring.job(number).y[: len(want)], want), f"job {number}"


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_no_job_is_lost(served, n_jobs):
    rounds(*served(n_jobs), 3000, np.random.default_rng(2))


@pytest.mark.slow
def test_no_job_of_100_000_is_lost(served):
    ring, server = served(3)
    rounds(ring, server, 100_000, np.random.default_rng(3))
    assert ring.posted == 100_000


def test_what_is_not_in_memory_is_fetched(served):
    numbers = []

    def fetch(job):
        numbers.append(threading.get_ident())
        n = job.pairs
        job.y[:n] = pairs(job.layer, job.x, job.row[:n], job.expert[:n], job.weight[:n])

    ring, server = served(missing=range(0, N_EXPERTS, 2), fetch=fetch)
    rounds(ring, server, 200, np.random.default_rng(4))
    assert numbers and threading.get_ident() not in numbers, "in the server's thread"


def test_what_a_fetch_raises_is_told_and_the_next_step_is_served(served):
    fails = [True]

    def fetch(job):
        if fails[0]:
            raise OSError(5, "Input/output error")
        job.y[: job.pairs] = 7

    ring, server = served(missing=[3], fetch=fetch)
    job = (0, np.ones((1, DIM), np.float32), [0], [3], [1.0])
    server.begin()
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error"):
            server.wait(post(ring, job))
    server.rest()
    fails[0] = False
    server.begin()
    number = post(ring, job)
    server.wait(number)
    assert (ring.job(number).y[0] == 7).all()


@pytest.mark.parametrize(
    "field, value", [("layer", LAYERS), ("layer", -1), ("rows", PAIRS + 1), ("pairs", PAIRS + 1), ("pairs", -1)]
)
def test_a_damaged_job_is_refused(served, field, value):
    ring, server = served()
    server.begin()
    number = ring.posted + 1
    ring.job(number).fill(*random_job(RNG))
    ring.job(number).fields[field] = value
    ring.post(number)
    with pytest.raises(ValueError, match="out of range"):
        server.wait(number)


@pytest.mark.parametrize("array, value", [("row", 2), ("row", -1), ("expert", N_EXPERTS), ("expert", -1)])
def test_a_pair_of_nothing_is_refused(served, array, value):
    ring, server = served()
    server.begin()
    number = ring.posted + 1
    ring.job(number).fill(*random_job(RNG))
    getattr(ring.job(number), array)[PAIRS - 1] = value
    ring.post(number)
    with pytest.raises(ValueError, match="out of range"):
        server.wait(number)


def test_a_number_without_its_job_is_refused(served):
    ring, server = served()
    server.begin()
    native.library().v4k_ring_post(ring.at, ring.posted + 1)
    with pytest.raises(ValueError, match="out of range"):
        server.wait(ring.posted)


def test_nobody_serves_a_ring():
    assert Ring(1, PAIRS, DIM).wait(1, LONG) == native.ESTOPPED


def test_a_server_that_does_not_answer_is_given_up(served):
    free = threading.Event()
    ring, server = served(missing=[0], fetch=lambda job: free.wait(LONG))
    server.begin()
    number = post(ring, (0, np.ones((1, DIM), np.float32), [0], [0], [1.0]))
    assert ring.wait(number, 0.05) == native.ETIMEOUT
    start = time.monotonic()
    assert ring.wait(number, LONG) == native.ETIMEOUT, "once is enough"
    assert time.monotonic() - start < LONG / 2
    free.set()
    server.begin()
    number = post(ring, job := random_job(np.random.default_rng(5), n=0))
    server.wait(number)
    assert len(job[2]) == 0


def test_a_device_that_does_not_answer_is_given_up(served):
    ring, server = served(timeout_s=0.05)
    server.begin()
    deadline = time.monotonic() + LONG
    while ring.head["error"] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ring.head["error"] == native.ETIMEOUT
    with pytest.raises(TimeoutError):
        server.rest()


def test_a_thread_that_hangs_holds_up_neither_stop_nor_exit():
    program = """
import threading
from test_serve import *
ring = Ring(1, PAIRS, DIM)
layers = [ServedLayer(ExpertTable([None] * N_EXPERTS), LIMIT)]
server = Server(ring, layers, lambda number: threading.Event().wait(), timeout_s=0.2)
server.begin()
number = post(ring, (0, np.ones((1, DIM), np.float32), [0], [0], [1.0]))
try:
    server.wait(number)
except TimeoutError:
    print("given up")
server.stop()
print("stopped")
"""
    assert _python(program) == ["given up", "stopped"]


def test_an_interpreter_ends_with_a_server_in_a_step():
    program = """
from test_serve import *
ring = Ring(1, PAIRS, DIM)
server = Server(ring, [ServedLayer(ExpertTable(layer), LIMIT) for layer in EXPERTS])
server.begin()
print("begun")
"""
    assert _python(program) == ["begun"]


def _python(program: str) -> list[str]:
    here = os.path.dirname(__file__)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * LONG, cwd=here)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


def test_who_waits_for_a_server_that_is_stopped_is_told(served):
    ring, server = served()
    server.begin()
    told = []

    def wait():
        try:
            server.wait(ring.posted + 1)
        except Stopped as stopped:
            told.append(stopped)

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.02)
    server.stop()
    waiting.join(LONG)
    assert told
    for call in (server.begin, server.rest):
        with pytest.raises(Stopped):
            call()
    server.stop()


def test_a_server_that_nobody_holds_is_stopped(served):
    ring = Ring(1, PAIRS, DIM)
    server = Server(ring, [ServedLayer(ExpertTable(layer), LIMIT) for layer in EXPERTS])
    gone = weakref.ref(server)
    assert ring.head["process"] == os.getpid()
    del server
    gc.collect()
    assert gone() is None and ring.head["process"] == 0


@pytest.mark.parametrize("in_step", [False, True])
def test_a_child_that_forked_serves_itself(served, in_step):
    """It has the memory but no thread: a step that was on has ended there, the next one is served by a new thread."""
    ring, server = served()
    server.begin()
    if not in_step:
        server.rest()
    child = os.fork()
    if child == 0:
        try:
            told = ring.wait(ring.posted + 1, LONG) == native.ESTOPPED
            rounds(ring, server, 50, np.random.default_rng(6))
            server.stop()
            os._exit(0 if told else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    rounds(ring, server, 50, np.random.default_rng(7))


def test_many_servers(served):
    several = [served() for _ in range(4)]
    threads = [threading.Thread(target=rounds, args=(*pair, 300, np.random.default_rng(8))) for pair in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * LONG)
    assert all(ring.posted == 300 and ring.head["error"] == 0 for ring, _ in several)


def test_arguments_that_make_no_server():
    ring = Ring(1, PAIRS, DIM)
    layers = [ServedLayer(ExpertTable(EXPERTS[0]), LIMIT)]
    with pytest.raises(ValueError, match="out of range"):
        Server(ring, [])
    with pytest.raises(ValueError, match="out of range"):
        Server(ring, layers, timeout_s=0)
    ring.native.memory = ring.native.memory + 4
    with pytest.raises(ValueError, match="out of range"):
        Server(ring, layers)
    with pytest.raises(ValueError, match="aligned"):
        Ring(1, PAIRS, DIM, np.zeros(ring.nbytes + 64, np.uint8)[1 : ring.nbytes + 1])
    assert ctypes.sizeof(native.Ring) == 32
