"""`--ram` holds for the sum: what a process really takes, by RSS, whatever the number of sessions."""

import sys

import pytest
import tiny
from v4kernels import native

from v4cli.bench.synthetic import shape, write_synthetic

pytestmark = [
    pytest.mark.skipif(not native.available(), reason="needs the kernel library"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc"),
]
MIB = 1 << 20
SLACK = 96 * MIB  # of what is planned for the runtime: libraries loaded later, stacks, what the allocator keeps
VALUES = {  # Flash's depth and kinds of layers; experts of 204 kB; a session of 32k tokens takes as much as 380 of them
    "hidden_size": 256, "moe_intermediate_size": 512, "n_routed_experts": 16, "head_dim": 256, "q_lora_rank": 64,
    "o_lora_rank": 64, "num_hidden_layers": 24, "num_hash_layers": 2,
}  # fmt: skip

GROW = """
import json, re, sys, threading
from pathlib import Path
import numpy as np, psutil
from v4cli.bench.fill import fill
from v4cli.engine.engine import Engine
from v4cli.engine.sampler import Sampling
from v4cli.errors import ResourceError
from v4cli.plan.ledger import RUNTIME

assert "torch" not in sys.modules
folder, more, n_sessions = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
try:
    Engine.open(folder, "cpu", ram=1)
except ResourceError as error:
    least = int(error.hint.removeprefix("--ram ").removesuffix("M")) << 20
before = psutil.Process().memory_info().rss
engine = Engine.open(folder, "cpu", ram=least + more)
ids = np.random.default_rng(0).integers(0, engine.config.vocab_size, 1200).tolist()
filling, reached, refused, wrong = threading.Lock(), [0] * n_sessions, [], []

def work(number):
    session = engine.session()
    session.sync(ids[number : number + 700])
    for length in range(2000, 60_000, 8000):
        try:
            with filling:  # which takes some memory of its own
                fill(session, length, seed=number)
            session.sync(session.tokens + ids[: 200 + number])
            for step in session.generate(Sampling(temperature=0.0), 3):
                pass
        except ResourceError as error:
            refused.append(str(error))
            session.sync(session.tokens[:600])
            session.feed(ids[:3])
            return
        reached[number] = length

def safely(number):
    try:
        work(number)
    except ResourceError as error:
        refused.append(str(error))
    except BaseException as error:
        wrong.append(repr(error))

threads = [threading.Thread(target=safely, args=(number,)) for number in range(n_sessions)]
for thread in threads: thread.start()
for thread in threads: thread.join()
held = engine.held
peak = int(re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1]) << 10
print(json.dumps({
    "taken": peak - before, "peak": peak,
    "ram": least + more, "allowed": least + more - RUNTIME, "refused": refused, "wrong": wrong, "reached": reached,
    "items": held.items, "free": held.free, "slots": held.slots, "planned": engine.place.ledger.slots,
    "spare": held.spare,
}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("sum")
    from dataclasses import replace

    config = shape("tiny")
    ratios = config.compress_ratios[: VALUES["num_hidden_layers"]]
    config = replace(config, **VALUES, compress_ratios=ratios)
    return tiny.make_store(write_synthetic(home / "source", config), home / "store")


@pytest.mark.slow
@pytest.mark.parametrize("n_sessions", [1, 2, 4, 8])
def test_the_sum_of_all_sessions_stays_within_the_budget(folder, n_sessions, in_new_process):
    grown = in_new_process(GROW, folder, 40 * MIB, n_sessions)
    assert not grown["wrong"] and grown["free"] >= 0
    assert grown["peak"] <= grown["ram"] and grown["taken"] <= grown["allowed"] + SLACK
    assert grown["slots"] < grown["planned"], "experts gave way"
    if n_sessions > 1:
        assert grown["refused"], "there is more to hold than fits"
        assert all("other session" in words for words in grown["refused"])
