"""`v4 bench cache`: what an expert cache would have hit on a trace of routing, by policy. No model, no disk.

`lru`, `lfu` (all uses counted, ever): the usual ones; every expert read takes the place of another. `v4`: ours
(experts/policy.py). `static`: the experts used most in the whole trace, chosen by hindsight, never exchanged.
`optimum`: Belady's, which knows the future: an expert read stays only if its next use comes before that of one that is
resident. Every one starts empty, except static.
"""

import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterator

import numpy as np

from v4cli.bench.traces import Trace
from v4cli.errors import UsageError
from v4cli.experts.policy import Residency, nearness

POLICIES = ("lru", "lfu", "v4", "static", "optimum")

FIELDS = ("trace", "tokens", "experts", "slots", "share", *POLICIES, "of_optimum")


def rows(name: str, trace: Trace, slots: list[str]) -> Iterator[dict]:
    """One row per number of slots, each a number or a percentage of the experts. UsageError."""
    for text in slots:
        places = _places(text, trace.total)
        hits = replay(trace, places)
        about = {"trace": name, "tokens": len(trace.experts), "experts": trace.total, "slots": places}
        of_optimum = hits["v4"] / hits["optimum"] if hits["optimum"] else 1.0
        yield about | {"share": places / trace.total} | hits | {"of_optimum": of_optimum}


def _places(text: str, total: int) -> int:
    try:
        places = round(float(text[:-1]) / 100 * total) if text.endswith("%") else int(text)
    except ValueError:
        places = 0
    if not 1 <= places <= total:
        raise UsageError(f"--slots {text!r}: not a number from 1 to {total}, nor a percentage", "--slots 5%,10%,700")
    return places


def replay(trace: Trace, places: int) -> dict[str, float]:
    """Share of requests hit by policy, with room for `places` experts of all layers."""
    requests = trace.requests()
    return {
        "lru": _lru(requests, places),
        "lfu": _lfu(requests, places),
        "v4": _ours(trace, places),
        "static": _static(requests, places),
        "optimum": _optimum(requests, places),
    }


def _lru(requests: np.ndarray, places: int) -> float:
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for expert in requests.ravel().tolist():
        if expert in held:
            hits += 1
            held.move_to_end(expert)
            continue
        if len(held) >= places:
            held.popitem(last=False)
        held[expert] = None
    return hits / requests.size


def _lfu(requests: np.ndarray, places: int) -> float:
    held, heap, uses, hits = set(), [], Counter(), 0
    for expert in requests.ravel().tolist():
        uses[expert] += 1
        if expert in held:
            hits += 1
        else:
            while len(held) >= places:
                count, other = heapq.heappop(heap)
                if other in held and count == uses[other]:
                    held.remove(other)
            held.add(expert)
        heapq.heappush(heap, (uses[expert], expert))
    return hits / requests.size


def _ours(trace: Trace, places: int) -> float:
    """Layer by layer, as a step goes: what later layers use is not known yet."""
    policy, hits = Residency(trace.total, places), 0
    n_tokens, n_layers, top_k = trace.experts.shape
    asked = trace.requests().reshape(n_tokens, n_layers, top_k)
    for token, scores in zip(asked, trace.scores.astype(np.float32)):
        for layer, experts in enumerate(token):
            if not np.isnan(scores[layer, 0]):
                policy.scored(layer * trace.n_experts, nearness(scores[layer, None], top_k))
            policy.used(experts, 1)
            for expert in experts.tolist():
                if policy.resident[expert]:
                    hits += 1
                else:
                    policy.admit(expert)
        policy.end_step()
    return hits / asked.size


def _static(requests: np.ndarray, places: int) -> float:
    return float(np.sort(np.bincount(requests.ravel()))[::-1][:places].sum() / requests.size)


def _optimum(requests: np.ndarray, places: int) -> float:
    flat = requests.ravel().tolist()
    next_use, last = [0] * len(flat), {}
    for i in range(len(flat) - 1, -1, -1):
        next_use[i] = last.get(flat[i], len(flat))
        last[flat[i]] = i
    held, heap, hits = {}, [], 0  # held: expert -> next use
    for i, expert in enumerate(flat):
        if expert in held:
            hits += 1
        else:
            while heap and held.get(heap[0][1]) != -heap[0][0]:
                heapq.heappop(heap)
            if len(held) >= places:
                if not heap or -heap[0][0] <= next_use[i]:
                    continue
                del held[heapq.heappop(heap)[1]]
        held[expert] = next_use[i]
        heapq.heappush(heap, (-next_use[i], expert))
    return hits / len(flat)
