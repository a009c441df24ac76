"""nano's DSpark drafter as it is trained: three blocks that guess five tokens at once (spec 3.11), for many places of
a timeline together.

At the end of position p the token at p+1 is known; a block stands for it and four unknown ones at positions
p+1 ... p+5, and guesses what follows each. It sees features of the trunk's last positions, and itself.

Sizes: T tokens of a timeline, A places, W the window, D hidden_size, G = 5 guesses, V vocabulary, R Markov rank.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from v4kernels.reference import ReferenceOps
from v4kernels.reference.equations import Weight

from v4cli.model.config import V4Config
from v4cli.model.v4 import V4
from v4cli.model.weights import Source, build

STAGES = 3


class _Blocks:
    """The drafter's blocks under the names of layers; embedding and head are the trunk's."""

    def __init__(self, source: Source[Weight, Tensor]):
        self.source = source

    def weight(self, name: str) -> Weight:
        return self.source.weight(_stored(name))

    def vector(self, name: str) -> Tensor:
        return self.source.vector(_stored(name))


def _stored(name: str) -> str:
    """Where the checkpoint has what is a trunk's tensor by this name."""
    if name.startswith("layers."):
        return "mtp." + name.removeprefix("layers.")
    return name if name in ("embed.weight", "head.weight") else f"mtp.{STAGES - 1}.{name}"


class Heads:
    """The drafter over reference ops; `ops_of` makes them over a tree of weights."""

    def __init__(self, config: V4Config, source: Source[Weight, Tensor], ops_of=ReferenceOps):
        assert config.dspark_block_size and config.dspark_target_layer_ids and config.dspark_noise_token_id is not None
        blocks = replace(config, num_hidden_layers=STAGES, num_hash_layers=0, compress_ratios=(0,) * STAGES)
        self.ops = ops_of(build(blocks, _Blocks(source)))
        self.guesses, self.noise = config.dspark_block_size, config.dspark_noise_token_id
        self.window, self.eps = config.sliding_window, config.rms_norm_eps
        self.main_proj = source.weight("mtp.0.main_proj.weight")
        self.main_norm = source.vector("mtp.0.main_norm.weight")
        last = f"mtp.{STAGES - 1}."
        self.after = source.weight(last + "markov_head.markov_w1.weight")  # (V, R): what a token says of the next
        self.next = source.weight(last + "markov_head.markov_w2.weight")  # (V, R)
        self.confidence_proj = source.weight(last + "confidence_head.proj.weight")  # (1, D + R)

    def hidden(self, features: Tensor, known: Tensor, places: Tensor) -> Tensor:
        """features (T, 3D) of the trunk, known (A,) tokens at places + 1, places (A,) -> (A, G, D), not normed."""
        ops, n_places = self.ops, len(places)
        main = ops.rms_norm(ops.linear(features, self.main_proj), self.main_norm, self.eps)  # (T, D)
        ids = torch.full((n_places, self.guesses), self.noise)
        ids[:, 0] = known
        positions = places[:, None] + 1 + torch.arange(self.guesses)  # (A, G)
        back = places[:, None] - torch.arange(self.window)  # (A, W)
        streams = ops.lookup(ids.flatten(), ops.tree.embed)[:, None].expand(-1, ops.tree.hc_head.streams, -1)
        bank = ops.resident()
        for layer in range(STAGES):
            x, mix = ops.attention_input(layer, streams)
            x = self._attention(layer, x, main, positions, back)
            streams = ops.sublayer_output(x, streams, mix)
            x, mix = ops.ffn_input(layer, streams)
            routed = bank.begin(layer, x, ops.route_by_score(layer, x), streams)
            streams = ops.sublayer_output(routed.add_to(ops.shared_expert(layer, x)), streams, mix)
        end = ops.tree.hc_head
        x = ops.hc_head(streams, end.fn, end.base, end.scale, end.norm_eps, end.eps)
        return x.unflatten(0, (n_places, self.guesses))

    def _attention(self, layer: int, x: Tensor, main: Tensor, positions: Tensor, back: Tensor) -> Tensor:
        """x (A*G, D) over the trunk's last positions `back` (A, W), of which those below 0 are none, and itself."""
        ops, attn = self.ops, self.ops.tree.layers[layer].attn
        turns = _rotations(attn.freqs, positions.flatten())
        q, _ = ops.queries(attn, x, turns)  # (A*G, H, d)
        own = self._latents(attn, x, turns).unflatten(0, positions.shape)  # (A, G, d)
        ring = self._latents(attn, main, _rotations(attn.freqs, torch.arange(len(main))))  # (T, d)
        keys = torch.cat((ring[back.clamp_min(0)], own), 1)  # (A, W + G, d)
        q = q.unflatten(0, positions.shape) * attn.head_dim**-0.5
        scores = torch.einsum("aghd,akd->aghk", q, keys)
        hidden = F.pad(back < 0, (0, self.guesses))
        scores = scores.masked_fill(hidden[:, None, None], -torch.inf)
        sink = attn.sink.expand(*scores.shape[:2], -1)[..., None]
        shares = torch.cat((scores, sink), -1).softmax(-1)[..., :-1]
        out = torch.einsum("aghk,akd->aghd", shares, keys).flatten(0, 1)
        return ops.attention_output(attn, ops.rope(out, turns, inverse=True))

    def _latents(self, attn, x: Tensor, turns: Tensor) -> Tensor:
        latent = self.ops.rms_norm(self.ops.linear(x, attn.wkv), attn.kv_norm, attn.eps)
        return self.ops.quantize_kv(self.ops.rope(latent, turns), attn.rope_dims)

    def logits(self, hidden: Tensor, before: Tensor) -> Tensor:
        """hidden (..., D), the token before each guess (...) -> (..., V)."""
        markov = self.ops.linear_fp32(F.embedding(before, self.after.dense()), self.next)
        return self.ops.logits(self.ops.rms_norm(hidden, self.ops.tree.hc_head.norm, self.eps)) + markov

    def confidence(self, hidden: Tensor, before: Tensor) -> Tensor:
        """Logits (...) of the chance that a guess is right if those before it are."""
        after = F.embedding(before, self.after.dense())
        return self.ops.linear_fp32(torch.cat((hidden, after), -1), self.confidence_proj)[..., 0]

    def guess(self, hidden: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """hidden (A, G, D), known (A,) -> the best guesses one after the other (A, G), and their chances (A, G)."""
        said, chances, before = [], [], known
        for i in range(self.guesses):
            chances.append(self.confidence(hidden[:, i], before).sigmoid())
            before = self.logits(hidden[:, i], before).argmax(-1)
            said.append(before)
        return torch.stack(said, 1), torch.stack(chances, 1)


def _rotations(freqs, positions: Tensor) -> Tensor:
    """(n, R/2) complex64 of any positions (n,)."""
    angles = torch.outer(positions.float(), torch.as_tensor(freqs))
    return torch.polar(torch.ones_like(angles), angles)


def features_of(model: V4, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What the drafter sees of a trunk that reads ids (T,) from the beginning, (T, 3D); the trunk's hidden (T, D)."""
    wanted = {f"layers.{layer}.ffn": i for i, layer in enumerate(model.config.dspark_target_layer_ids or ())}
    found: dict[int, Tensor] = {}

    def watch(name: str, streams: Tensor) -> None:
        if name in wanted:
            found[wanted[name]] = streams.mean(1)

    hidden = model.forward([(ids, model.new_state())], watch)
    return torch.cat([found[i] for i in sorted(found)], -1), hidden
