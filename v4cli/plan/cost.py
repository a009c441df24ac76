"""What a model costs, from its config alone: parameters, bytes on disk, KV bytes, and bytes per decoded token (spec
0, 2.3, 4.1).

What depends on quantization takes the tensors as they are stored: `expected_tensors(config)` for the official
checkpoint, `stored_tensors(layout(config, quant))` for a store.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from v4kernels.cpu import default_threads
from v4kernels.native import key_bytes

from v4cli.model.config import V4Config
from v4cli.model.schema import TensorSpec, expected_tensors
from v4cli.plan import memory
from v4cli.plan.memory import CHUNK, FEW, kv_entry
from v4cli.plan.placement import Needs, Use
from v4cli.store.parts import PAGE, Part, lay_out
from v4cli.store.recipe import Recipe, formats_by


@dataclass(frozen=True)
class Parameters:
    """Model values, draft blocks not counted."""

    total: int
    active: int  # touched by one token


@dataclass(frozen=True)
class PayloadBytes:
    """Tensor bytes by component; dense is what is left of the trunk."""

    experts: int
    dense: int
    embed: int
    head: int
    mtp: int
    n_tensors: int

    @property
    def total(self) -> int:
        return self.experts + self.dense + self.embed + self.head + self.mtp


@dataclass(frozen=True)
class KVBytes:
    """KV state at some context length."""

    compressed: int
    indexer: int
    windows: int

    @property
    def total(self) -> int:
        return self.compressed + self.indexer + self.windows


def _component(name: str) -> str:
    if ".ffn.experts." in name and not name.startswith("mtp."):
        return "experts"
    first = name.split(".")[0]
    return first if first in ("mtp", "embed", "head") else "dense"


def parameters(config: V4Config) -> Parameters:
    """Total and active values of the trunk; the token-to-expert tables are not parameters."""
    few, more = _few_experts(config)
    one, two = map(_counts, few)
    counts = {name: n + more * (two[name] - n) for name, n in one.items()}
    used = counts["experts"] * config.num_experts_per_tok // config.n_routed_experts
    return Parameters(sum(counts.values()), counts["dense"] + counts["head"] + used)


def _counts(config: V4Config) -> dict[str, int]:
    """Values by component, each tensor looked at."""
    counts = {"experts": 0, "embed": 0, "head": 0, "dense": 0}
    for name, spec in expected_tensors(config, with_mtp=False).items():
        if spec.dtype != "I64":
            counts[_component(name)] += spec.n_values
    return counts


def stored_tensors(parts: Mapping[str, Part]) -> dict[str, TensorSpec]:
    """The tensors of a store's parts, padding left out."""
    return {n: t.spec for part in parts.values() for n, t in part.tensors.items() if t.format != "pad"}


def payload_bytes(tensors: Mapping[str, TensorSpec]) -> PayloadBytes:
    """Bytes of stored tensors, to the byte."""
    totals = {"experts": 0, "dense": 0, "embed": 0, "head": 0, "mtp": 0}
    for name, spec in tensors.items():
        totals[_component(name)] += spec.nbytes
    return PayloadBytes(**totals, n_tensors=len(tensors))


def slot_sizes(tensors: Mapping[str, TensorSpec]) -> list[tuple[int, int]]:
    """The routed experts of the trunk by their formats: how many have the same, and the bytes of memory that one takes,
    whole pages."""
    experts: dict[str, tuple[TensorSpec, ...]] = {}
    for name, spec in tensors.items():
        if _component(name) == "experts":
            expert = name.rsplit(".", 2)[0]
            experts[expert] = (*experts.get(expert, ()), spec)
    kinds = Counter(experts.values())
    return [(count, -(-sum(spec.nbytes for spec in kind) // PAGE) * PAGE) for kind, count in kinds.items()]


def needs(config: V4Config, tensors: Mapping[str, TensorSpec]) -> Needs:
    """What running from these tensors takes, at a context of 0 tokens."""
    payload = payload_bytes(tensors)
    dense: dict[str, Use] = {}
    for name, spec in tensors.items():
        if _component(name) == "dense":
            block = ".".join(name.split(".")[:2]) if name.startswith("layers.") else "tail"
            read = 0 if name.endswith("tid2eid") else spec.nbytes  # of a table one row is read: next to nothing
            before = dense.get(block, Use(0, 0))
            dense[block] = Use(before.held + spec.nbytes, before.read + read)
    n_experts, slots = config.num_hidden_layers * config.n_routed_experts, slot_sizes(tensors)
    held = sum(count * size for count, size in slots)
    bare = Needs(
        dense=tuple(dense.values()),
        head=payload.head,
        embed=Use(payload.embed, payload.embed // config.vocab_size),
        draft=payload.mtp,
        expert=payload.experts // n_experts,
        slot=-(-held // n_experts),
        kinds=tuple(size for _, size in slots),
        n_experts=n_experts,
        experts_per_token=config.num_hidden_layers * config.num_experts_per_tok,
        experts_at_once=config.num_experts_per_tok,
        sessions=0,
        kv=Use(0, 0),
        chosen=Use(0, 0),
        pinned=memory.pinned_bytes(config),
        point=memory.most_point_bytes(config),
        scratch=0,
    )
    return at_context(bare, config, 0)


def needs_of_release(config: V4Config, recipe: Recipe, with_mtp: bool = False) -> Needs:
    """The same of a store by a recipe that names no expert by its number, without a list of its tensors: two models
    with few experts tell how much each adds."""
    few, more = _few_experts(config)
    one, two = (needs(c, _stored_by(recipe, c, with_mtp)) for c in few)

    def extended(a: int, b: int) -> int:
        return a + more * (b - a)

    dense = tuple(Use(extended(a.held, b.held), extended(a.read, b.read)) for a, b in zip(one.dense, two.dense))
    count = config.num_hidden_layers * config.n_routed_experts
    draft, point = extended(one.draft, two.draft), memory.most_point_bytes(config)
    return at_context(replace(one, dense=dense, n_experts=count, draft=draft, point=point), config, 0)


def _stored_by(recipe: Recipe, config: V4Config, with_mtp: bool) -> dict[str, TensorSpec]:
    official = expected_tensors(config, with_mtp)
    return stored_tensors(lay_out(official, formats_by(recipe, official)))


def _few_experts(config: V4Config) -> tuple[list[V4Config], int]:
    """The config with so few experts that it is quick to list, and with one more in each layer; how many more than in
    the first it has."""
    few = [replace(config, n_routed_experts=config.num_experts_per_tok + n) for n in (0, 1)]
    return few, config.n_routed_experts - config.num_experts_per_tok


def at_context(bare: Needs, config: V4Config, n_tokens: int, sessions: int = 1) -> Needs:
    """The same needs with what `sessions` sessions of `n_tokens` of context hold and compute in."""
    held = memory.timeline_bytes(config, n_tokens) + memory.logits_bytes(config)
    return replace(
        bare,
        sessions=sessions,
        kv=Use(held, kv_read_bytes(config, n_tokens)),
        chosen=Use(memory.chosen_bytes(config, n_tokens), kv_read_parts(config, n_tokens)["csa_entries"]),
        scratch=scratch_bytes(config, n_tokens, sessions),
    )


def scratch_bytes(config: V4Config, n_tokens: int, sessions: int) -> int:
    """Working memory of the largest step: a chunk of one session and the few rows of every other."""
    return memory.scratch_bytes(config, CHUNK + FEW * (sessions - 1), n_tokens, default_threads())


def read_bytes_per_token(config: V4Config, tensors: Mapping[str, TensorSpec]) -> dict[str, int]:
    """Weight bytes that one decoded token reads, by component; draft blocks are not used."""
    return read_by_part(needs(config, tensors))


def read_by_part(needs: Needs) -> dict[str, int]:
    """The same, of what running takes."""
    return {
        "experts": needs.experts_per_token * needs.expert,
        "dense": sum(use.read for use in needs.dense),
        "head": needs.head,
        "embed": needs.embed.read,
    }


def held_by_part(needs: Needs) -> dict[str, int]:
    """Bytes of the weights, by component."""
    return {
        "experts": needs.n_experts * needs.expert,
        "dense": sum(use.held for use in needs.dense),
        "embed": needs.embed.held,
        "head": needs.head,
        "mtp": needs.draft,
    }


def entry_bytes(config: V4Config) -> tuple[int, int]:
    """Bytes of one KV entry and of one index key (spec 4.1: 584 and 68 for V4)."""
    return kv_entry(config), sum(key_bytes(config.index_head_dim))


def kv_bytes(config: V4Config, n_tokens: int) -> KVBytes:
    """KV state in the official compressed layout at `n_tokens` of context."""
    kv, key = entry_bytes(config)
    ratios = memory.ratios(config)
    compressed = sum(n_tokens // r for r in ratios if r) * kv
    indexer = sum(n_tokens // r for r in ratios if r == 4) * key
    return KVBytes(compressed, indexer, len(ratios) * min(n_tokens, config.sliding_window) * kv)


def kv_bytes_per_token(config: V4Config) -> float:
    """Growth of the KV state per token of context."""
    kv, key = entry_bytes(config)
    return sum(kv / r + (key / r if r == 4 else 0) for r in memory.ratios(config) if r)


def kv_read_parts(config: V4Config, n_tokens: int) -> dict[str, int]:
    """KV bytes that one decoded token reads, by component: all index keys (none while every entry is chosen), the
    chosen entries of ratio 4, all of ratio 128."""
    kv, key = entry_bytes(config)
    ratios = memory.ratios(config)
    entries = n_tokens // 4
    return {
        "window": len(ratios) * min(n_tokens, config.sliding_window) * kv,
        "index_keys": ratios.count(4) * (entries if selects(config, n_tokens) else 0) * key,
        "csa_entries": ratios.count(4) * min(config.index_topk, entries) * kv,
        "hca_entries": ratios.count(128) * (n_tokens // 128) * kv,
    }


def kv_read_bytes(config: V4Config, n_tokens: int) -> int:
    """The sum of `kv_read_parts`."""
    return sum(kv_read_parts(config, n_tokens).values())


def selects(config: V4Config, n_tokens: int) -> bool:
    """Whether there are more entries than are chosen: until then nothing is scored."""
    return n_tokens // 4 > config.index_topk
