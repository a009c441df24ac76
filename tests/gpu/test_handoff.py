"""The hand-off as kernels see it: compiled, run in the PTX machine beside the thread that really serves the ring."""

import threading
import time

import numpy as np
import pytest
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
from emulated import Emulated
from gpu_kernels import same
from test_gate import EACH_AMD, EACH_NVIDIA, Budget, complaints
from v4kernels.cpu import ExpertTable, PackedWeight
from v4kernels.cpu.serve import ServedLayer, Server, Stopped
from v4kernels.tree import Expert
from v4kernels.triton import experts, handoff
from v4kernels.triton.served import Handoff

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
DIM, INTER, N_EXPERTS, LAYERS, TOP_K, ROWS, LIMIT = 96, 32, 9, 3, 3, 8, 1.5
LONG = 60.0  # seconds that nothing here takes
F = np.float32


def random_expert(rng: np.random.Generator) -> Expert[PackedWeight]:
    def weight(rows, cols):
        codes = rng.integers(0, 256, (rows, cols // 2), np.uint8)
        return PackedWeight.of("fp4", codes, np.full((rows, cols // native.GROUP), 124, np.uint8))

    return Expert(w1=weight(INTER, DIM), w3=weight(INTER, DIM), w2=weight(DIM, INTER))


EXPERTS = [[random_expert(np.random.default_rng(10 * i + e)) for e in range(N_EXPERTS)] for i in range(LAYERS)]


def added(layer: int, x: np.ndarray, ids: np.ndarray, weights: np.ndarray, out: np.ndarray) -> np.ndarray:
    """v4k_experts: x (n, D), ids and weights (n, k), added to out."""
    table, x = ExpertTable(EXPERTS[layer]), np.ascontiguousarray(x)
    ids, weights = np.ascontiguousarray(ids, np.int64), np.ascontiguousarray(weights, F)
    at = x.ctypes.data, len(x), ids.ctypes.data, weights.ctypes.data, ids.shape[1], LIMIT, out.ctypes.data
    native.checked(native.library().v4k_experts(table.at, table.n, None, *at))
    return out


class Routed:
    """What is routed in one layer, and what its experts add to, in device memory."""

    def __init__(self, device: Emulated, rng: np.random.Generator, layer: int, rows: int):
        self.layer, self.rows, self.device = layer, rows, device
        sizes = {"x": 4 * DIM, "ids": 8 * TOP_K, "weights": 4 * TOP_K, "scores": 4 * N_EXPERTS, "out": 4 * DIM}
        self.at = {name: device.alloc(rows * width) for name, width in sizes.items()}
        self.hits_at = device.alloc(4 * rows * TOP_K * DIM)
        self.draw(rng)

    def draw(self, rng: np.random.Generator) -> None:
        n = self.rows
        self.x, self.out = (rng.standard_normal((n, DIM), F) for _ in range(2))
        self.ids = np.array([rng.choice(N_EXPERTS, TOP_K, replace=False) for _ in range(n)])
        self.weights, self.scores = rng.random((n, TOP_K), F), rng.random((n, N_EXPERTS), F)
        for name, at in self.at.items():
            self.device.write(at, getattr(self, name))

    def put_hits(self, slots: np.ndarray) -> None:
        """Rows of pairs whose expert has a slot; the others are NaN."""
        hits = np.full((self.rows, TOP_K, DIM), np.nan, F)
        for i, j in np.argwhere(slots[self.ids] >= 0):
            hits[i, j] = 0
            choice = self.ids[i : i + 1, j : j + 1], self.weights[i : i + 1, j : j + 1]
            added(self.layer, self.x[i : i + 1], *choice, hits[i, j][None])
        self.device.write(self.hits_at, hits)

    def launch(self, hand: Handoff) -> None:
        at = self.at
        hand.post(self.layer, at["x"], at["ids"], at["weights"], at["scores"])
        hand.wait()
        hand.add(at["ids"], self.hits_at, at["out"])

    def check(self) -> None:
        got = self.device.read(self.at["out"], self.out.nbytes).view(F).reshape(self.out.shape)
        assert same(got, added(self.layer, self.x, self.ids, self.weights, self.out.copy()))


@pytest.fixture
def made():
    """A device, what hands experts to a server, and that server, which is stopped."""
    servers = []

    def made(gpu="sm_89", missing=(), fetch=None, timeout_s=LONG):
        device = Emulated(gpu)
        hand = Handoff(device, np.zeros((LAYERS, N_EXPERTS), np.int8), DIM, TOP_K, ROWS, timeout_s)
        tables = [[None if e in missing else expert for e, expert in enumerate(layer)] for layer in EXPERTS]
        layers = [ServedLayer(ExpertTable(table), LIMIT) for table in tables]
        servers.append(Server(hand.ring, layers, fetch, LONG))
        return device, hand, servers[-1]

    yield made
    for server in servers:
        server.stop()


def random_table(rng: np.random.Generator, share: float) -> np.ndarray:
    table = np.full((LAYERS, N_EXPERTS), -1, np.int16)
    held = rng.random(table.shape) < share
    table[held] = rng.permutation(held.sum())
    return table


@pytest.mark.parametrize("gpu", ["sm_80", "sm_89", "sm_120"])
def test_experts_with_and_without_slots_add_up_to_the_librarys_bits(made, gpu):
    device, hand, server = made(gpu)
    rng = np.random.default_rng(1)
    for rows, share in ((1, 0.0), (1, 0.5), (1, 1.0), (5, 0.5), (8, 0.0), (8, 0.9)):
        routed = [Routed(device, rng, layer, rows) for layer in range(LAYERS)]
        table = random_table(rng, share)
        server.begin()
        hand.begin(table, rows)
        for each in routed:
            each.put_hits(table[each.layer])
            each.launch(hand)
        told = hand.end()
        server.rest()
        for each in routed:
            each.check()
            assert np.array_equal(told.ids[each.layer], each.ids)
            assert np.array_equal(told.scores[each.layer], each.scores)
        assert told.code == 0 and (told.waited_s > 0) == (share < 1)


def test_a_job_is_what_the_host_would_have_filled(made):
    device, hand, server = made()
    rng, table = np.random.default_rng(2), np.full((LAYERS, N_EXPERTS), -1, np.int16)
    routed = Routed(device, rng, 1, 4)
    table[1, routed.ids[2]] = np.arange(TOP_K)  # a row whose experts all have slots
    server.begin()
    hand.begin(table, 4)
    routed.put_hits(table[1])
    routed.launch(hand)
    server.rest()
    job, missing = hand.ring.job(1), table[1][routed.ids] < 0
    row, choice = np.nonzero(missing)
    n = len(row)
    assert (job.layer, int(job.fields["rows"]), job.pairs, int(job.fields["number"])) == (1, 4, n, 1)
    assert np.array_equal(job.row[:n], row) and np.array_equal(job.expert[:n], routed.ids[row, choice])
    assert np.array_equal(job.weight[:n], routed.weights[row, choice])
    needed = missing.any(1)
    assert np.array_equal(job.x[:4][needed], routed.x[needed]) and not job.x[:4][~needed].any()


def test_a_recorded_step_posts_whatever_is_missing_then(made):
    """Numbers of jobs, and whether there are any, come from memory: layers without a job, other steps in between."""
    device, hand, server = made()
    rng, posted = np.random.default_rng(3), 0
    routed = [Routed(device, rng, layer, 2) for layer in range(LAYERS)]
    hand.begin(random_table(rng, 0.5), 2)
    with device.record() as graph:
        for each in routed:
            each.launch(hand)
    for i in range(12):
        table = random_table(rng, (0.0, 0.95, 0.95, 1.0)[i % 4])
        server.begin()
        for each in routed:
            each.draw(rng)
            each.put_hits(table[each.layer])
        if i % 3 == 2:  # the host drives a job of its own
            posted += 1
            hand.ring.job(posted).fill(0, routed[0].x, np.zeros(1), np.zeros(1), np.ones(1))
            hand.ring.post(posted)
            server.wait(posted)
        hand.begin(table, 2)
        graph.replay()
        told = hand.end()
        server.rest()
        for each in routed:
            each.check()
        posted += sum(bool((table[each.layer][each.ids] < 0).any()) for each in routed)
        assert told.code == 0 and hand.ring.posted == posted
    assert posted < 12 * LAYERS, "some layers had no job"


def failing(made, fetch, timeout_s=LONG, meanwhile=None):
    """A step of all layers, of which the second lacks an expert that `fetch` does not bring: what the host hears, the
    device having ended by itself."""
    device, hand, server = made(missing={0}, fetch=fetch, timeout_s=timeout_s)
    rng = np.random.default_rng(4)
    routed = [Routed(device, rng, layer, 1) for layer in range(LAYERS)]
    for each, ids in zip(routed, ((1, 2, 3), (4, 0, 5), (1, 2, 3))):
        device.write(each.at["ids"], np.array([ids]))
    server.begin()
    hand.begin(np.full((LAYERS, N_EXPERTS), -1, np.int16), 1)
    other = threading.Thread(target=meanwhile, args=(hand, server)) if meanwhile else None
    if other:
        other.start()
    start = time.monotonic()
    for each in routed:
        each.launch(hand)
    told = hand.end()
    assert time.monotonic() - start < LONG / 2, "long before the server's own time is over"
    if other:
        other.join()
    assert hand.ring.posted == 2, "nothing is posted after a wait that failed"
    return hand, server, told


def test_an_error_of_a_fetch_ends_the_wait_and_is_told(made):
    def fetch(number):
        raise ValueError("the disk is gone")

    _, server, told = failing(made, fetch)
    assert told.code == native.EFETCH
    with pytest.raises(ValueError, match="the disk is gone"):
        server.check(told.code)


def test_a_wait_ends_when_its_time_is_over(made):
    end = threading.Event()
    hand, server, told = failing(made, lambda number: end.wait(LONG), timeout_s=0.3)
    assert told.code == native.ETIMEOUT and told.waited_s >= 0.3
    assert hand.ring.head["failed"] == native.ETIMEOUT, "the server hears of it"
    with pytest.raises(TimeoutError):
        server.check(told.code)
    end.set()
    server.rest()


def test_a_wait_ends_when_the_server_is_stopped(made):
    inside, end = threading.Event(), threading.Event()

    def fetch(number):
        inside.set()
        end.wait(LONG)

    def stop(hand, server):
        inside.wait(LONG)
        threading.Timer(0.2, end.set).start()
        server.stop()

    _, server, told = failing(made, fetch, meanwhile=stop)
    assert told.code == native.ESTOPPED
    with pytest.raises(Stopped):
        server.check(told.code)


def test_a_step_after_one_that_failed_is_right(made):
    fails = [True]

    def fetch(number):
        if fails.pop():
            raise ValueError("once")

    hand, server, _ = failing(made, fetch)
    device, rng = hand.device, np.random.default_rng(5)
    routed = Routed(device, rng, 1, 3)
    routed.ids[routed.ids == 0] = 8
    device.write(routed.at["ids"], routed.ids)
    server.begin()
    hand.begin(np.full((LAYERS, N_EXPERTS), -1, np.int16), 3)
    routed.launch(hand)
    assert hand.end().code == 0
    server.rest()
    routed.check()


# -- what kernels take of a GPU ---------------------------------------------------------------------------------------

RING = handoff.places(48, 4096)
POST = {"DIM": 4096, "TOP_K": 6, "EXPERTS": 256, "PAIRS": 64, "BLOCK": 1024}
POST |= {name: RING[name] for name in ("JOB", "ROW", "EXPERT", "WEIGHT", "X")}
ADDING = {"N": 4096, "TOP_K": 6, "BLOCK": 1024}
SERVED = ADDING | {"S": 4, "JOB": RING["JOB"], "Y": RING["Y"]}
ON_NVIDIA = {
    "post": Budget(handoff.post, POST, registers=48, shared=64, warps=8),
    "wait": Budget(handoff.wait, {}, registers=24, shared=0, warps=1),
    "add_served": Budget(handoff.add_served, SERVED, registers=64, shared=0),
    "add_placed": Budget(experts.add_placed, ADDING, registers=48, shared=0),
}
ON_AMD = {
    "post": Budget(handoff.post, POST, registers=32, shared=64, warps=8),
    "wait": Budget(handoff.wait, {}, registers=16, shared=16, warps=1),
    "add_served": Budget(handoff.add_served, SERVED, registers=120, shared=0),
    "add_placed": Budget(experts.add_placed, ADDING, registers=120, shared=0),
}


@EACH_NVIDIA
@pytest.mark.parametrize("name", ON_NVIDIA)
def test_kernels_stay_within_their_budgets(name, gpu):
    assert complaints(ON_NVIDIA[name], gpu) == []


@EACH_AMD
@pytest.mark.parametrize("name", ON_AMD)
def test_kernels_compile_for_amd_within_their_budgets(name, gpu):
    assert complaints(ON_AMD[name], gpu) == []
