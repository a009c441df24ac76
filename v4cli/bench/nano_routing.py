"""Routing of real text at Flash's scale: nano's router inputs, given 256 experts a layer instead of 8.

As a trained router's, the experts' keys lie where the inputs are: they are the centroids of inputs that nano sees on
training dialogues (k-means on the sphere), with a bias that balances their use, as V4's does. The trace is of held-out
dialogues: which experts follow one another is nano's doing, word by word.
"""

import random

import numpy as np
import torch
from torch import Tensor

from v4cli.bench.traces import Trace
from v4cli.chat.tokenizer import Tokenizer
from v4cli.engine.engine import Engine
from v4cli.nano.dialogues import generate
from v4cli.nano.timelines import turn_ids
from v4cli.paths import NANO
from v4cli.plan.memory import CHUNK

N_EXPERTS, TOP_K = 256, 6  # Flash's
TRAINING = 12_000  # tokens
ROUNDS = 10  # of k-means
BALANCING, STEP = 60, 0.01  # rounds of it, and how far each moves a bias


def nano_routing(n_tokens: int, seed: int = 0) -> Trace:
    """A trace of so many held-out tokens."""
    training, heldout = _inputs(TRAINING, "train", seed), _inputs(n_tokens, "heldout", seed + 1)
    scores = torch.stack([_scores(seen, new, seed) for seen, new in zip(training, heldout)], dim=1)  # (T, L, E)
    experts = scores.topk(TOP_K, dim=2).indices
    return Trace(experts.numpy().astype(np.uint16), N_EXPERTS, scores.numpy().astype(np.float16))


def _inputs(n_tokens: int, split: str, seed: int) -> Tensor:
    """What the routers of nano's layers see of dialogues, (L, T, D)."""
    engine, tokenizer, rng = Engine.open(NANO, "cpu"), Tokenizer.from_file(NANO / "tokenizer.json"), random.Random(seed)
    ids: list[int] = []
    while len(ids) < n_tokens:
        ids += turn_ids(tokenizer, generate(rng, split).messages)
    engine.model.bank = noting = Noting(engine.model.bank, engine.config.num_hidden_layers)
    session = engine.session()
    for start in range(0, n_tokens, CHUNK):
        session.feed(ids[start : min(start + CHUNK, n_tokens)])
    return torch.from_numpy(np.stack([np.concatenate(layer) for layer in noting.seen]))


class Noting:
    """A bank that notes what the routers see."""

    repeatable = False

    def __init__(self, bank, n_layers: int):
        self.seen: list[list[np.ndarray]] = [[] for _ in range(n_layers)]
        self._bank = bank
        self.begin_step, self.foresee, self.end_step = bank.begin_step, bank.foresee, bank.end_step
        self.doubt = bank.doubt

    def begin(self, layer, x, routing, streams):
        self.seen[layer].append(x.array().copy())
        return self._bank.begin(layer, x, routing, streams)


def _scores(seen: Tensor, new: Tensor, seed: int) -> Tensor:
    """Scores (T, E) of inputs `new` (T, D) by experts made for inputs `seen`."""
    mean = seen.mean(dim=0)
    seen, new = (torch.nn.functional.normalize(x - mean, dim=1) for x in (seen, new))
    keys = seen[torch.from_numpy(np.random.default_rng(seed).choice(len(seen), N_EXPERTS, replace=False))]
    for _ in range(ROUNDS):
        nearest = (seen @ keys.T).argmax(dim=1)
        sums = torch.zeros_like(keys).index_add_(0, nearest, seen)
        keys = torch.nn.functional.normalize(torch.where(sums.any(dim=1, keepdim=True), sums, keys), dim=1)
    likeness, bias = seen @ keys.T, torch.zeros(N_EXPERTS)
    for _ in range(BALANCING):
        uses = torch.bincount((likeness + bias).topk(TOP_K, dim=1).indices.ravel(), minlength=N_EXPERTS)
        bias -= STEP * torch.sign(uses - len(seen) * TOP_K / N_EXPERTS)
    return new @ keys.T + bias
