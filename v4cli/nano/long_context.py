"""How nano learns to remember over a million tokens from timelines of a thousand.

After the stages before, nano copies through the windows of layer 2 alone: beyond 128 tokens nothing is found. Four
things change that, cheaply:
- Layer 3, of little use until then, starts as a graft of layer 2, its compressor as a mean of layer 2's latents.
- Positions make jumps, so that distances of up to a million tokens occur (YaRN's rotations at all of them included).
- HCA entries, and CSA entries of filler, count as often as the timeline was stretched, as if the jumps had been full
  of text like it: facts must stand out.
- The indexers, which short timelines never use, learn to score entries as attention weighs them (KL, as DeepSeek-V3.2's
  do): until then nothing is left out, so they learn from what attention would want if it saw everything.
Routed experts, routers, embedding, head and layer 0 stay as they are.
"""

import math
import random

import torch
from torch import Tensor
from v4kernels.reference.quant import fake_fp4, hadamard

from v4cli.nano import recipe
from v4cli.nano.training_ops import TrainingOps

LONGEST = 2**20
STRETCHED = 0.75  # share of timelines whose positions jump
MOST_JUMPS = 6


def trains(name: str) -> bool:
    """Whether this stage changes the tensor of this name."""
    return not name.startswith("layers.0.") and any(part in name for part in (".attn", ".hc_", ".shared_experts."))


def graft(tensors: dict[str, Tensor]) -> None:
    """Layer 3's attention becomes layer 2's, its entries means of four latents; the gates start with random
    preferences for places in the block, so that order is not lost."""
    source, target = "layers.2.", "layers.3."
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name.startswith((source + "attn", source + "hc_attn")) and ".compressor." not in name:
                tensors[target + name.removeprefix(source)].copy_(tensor)
        at = target + "attn.compressor."
        latents = tensors[target + "attn.wkv.weight"]
        tensors[at + "wkv.weight"].copy_(torch.cat((latents, latents)))
        tensors[at + "norm.weight"].copy_(tensors[target + "attn.kv_norm.weight"])
        tensors[at + "wgate.weight"].mul_(0.1)
        tensors[at + "ape"].normal_(generator=torch.Generator().manual_seed(1))
        tensors[at + "ape"][:, : len(latents)] -= 2.0  # the block before counts less than the own one


class LongOps(TrainingOps):
    """Training ops with stretched positions and a loss for the indexers."""

    taught_rows = 256  # tokens per timeline whose attention the indexers learn from

    def begin(self, ids: Tensor, filler: Tensor, rng: random.Random) -> None:
        """Draw this timeline's jumps, each between two turns, and the rows that the indexers learn from."""
        n, jumps = len(ids), torch.zeros(len(ids), dtype=torch.float64)
        self.stretch = (LONGEST / n) ** rng.random() if rng.random() < STRETCHED else 1.0
        ends = (ids[:-1] == recipe.CONFIG["eos_token_id"]).nonzero().flatten().tolist()
        places = rng.sample(ends, min(len(ends), rng.randint(1, MOST_JUMPS)))
        sizes = [rng.random() for _ in places]
        for place, size in zip(places, sizes):
            jumps[place + 1] = round(size / sum(sizes) * n * (self.stretch - 1))
        self.filler = filler
        self.positions = (torch.arange(n) + jumps.cumsum(0)).float()
        self.rows = torch.tensor(sorted(rng.sample(range(n), self.taught_rows)))
        self.losses: list[Tensor] = []

    def own_loss(self) -> Tensor:
        return sum(self.losses)

    def balance(self) -> None:
        self.loads.clear()  # the routers stay as they are

    def rotations(self, freqs, start: int, n: int, step: int = 1) -> Tensor:
        angles = torch.outer(self.positions[start : start + n * step : step], torch.as_tensor(freqs))
        return torch.polar(torch.ones_like(angles), angles)

    # -- attention: crowded, and an example for the indexers --------------------------------------------------

    def attend(self, attn, q, turns, start, kv, selected):
        if attn.indexer is not None:
            self.losses.append(self._index_loss(attn, q.detach()[self.rows], kv))
        if attn.ratio:
            crowded = torch.ones(len(q) // 128) if attn.ratio == 128 else self.filler.unfold(0, 4, 4).all(-1).float()
            self.crowd = math.log(self.stretch) * crowded
        else:
            self.crowd = None
        return super().attend(attn, q, turns, start, kv, selected)

    def crowding(self, n_entries):
        return self.crowd

    def append_compressed(self, compressor, x, start, part):
        super().append_compressed(compressor, x.detach() if compressor.is_index else x, start, part)

    def quantize_index(self, x):
        x = hadamard(x)
        return x + (fake_fp4(x) - x).detach()

    def select(self, indexer, x, qr, turns, start, part):
        """Only scores, (rows, n); nothing is left out."""
        x, qr = x.detach()[self.rows], qr.detach()[self.rows]
        q = self.linear(qr, indexer.wq_b).unflatten(-1, (-1, indexer.head_dim))
        q = self.quantize_index(self.rope(q, turns[self.rows]))
        weights = self.linear(x, indexer.weights_proj) * (indexer.head_dim**-0.5 * indexer.heads**-0.5)
        dots = torch.einsum("thc,nc->thn", q, part.entries.view()).relu()
        self.scores = (dots * weights[..., None]).sum(1)

    def _index_loss(self, attn, q: Tensor, kv) -> Tensor:
        """Cross entropy between what the rows' heads attend to, summed, and the softmax of their index scores."""
        rows = self.rows[:, None]
        with torch.no_grad():
            entries, width = kv.main.entries.view(), attn.window
            hidden = torch.arange(len(entries)) >= (rows + 1) // attn.ratio
            places = rows - torch.arange(width)  # (rows, width) of the window
            near = torch.matmul(q, kv.window[places.clamp_min(0)].mT).masked_fill((places < 0)[:, None], -torch.inf)
            far = torch.matmul(q, entries.T).masked_fill(hidden[:, None], -torch.inf)  # (rows, H, n)
            logits = torch.cat((far, near), -1) * attn.head_dim**-0.5
            logits = torch.cat((logits, attn.sink.expand(len(q), -1)[..., None]), -1)
            wanted = logits.softmax(-1)[..., : len(entries)].sum(1)
        scores = self.scores.masked_fill(hidden, -1e30).log_softmax(-1)
        return -(wanted * scores).sum() / wanted.sum()


class WholeLongOps(LongOps):
    """The same for a stage that trains everything: the routers are kept in balance, the indexers follow."""

    taught_rows = 96

    def balance(self) -> None:
        TrainingOps.balance(self)
