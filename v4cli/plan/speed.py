"""How fast a plan with a card is: bytes and operations over the rates of a machine, and what a step costs beside.

A decoded token takes: reading what the card holds of dense weights, head and KV; then, layer by layer, the experts that
lie in VRAM and, at the same time, on the CPU those that do not; and a fixed cost of launches and of handing over.
A prefill takes the longest of: its products on the card; the experts that are not there, each copied to the card or, if
few rows need it, computed by the CPU; reading those that are on the SSD.
"""

from dataclasses import dataclass

from v4kernels.tree import OVERLAPPED, Kind

from v4cli.model.config import V4Config
from v4cli.plan.cards import Card
from v4cli.plan.cost import selects
from v4cli.plan.flops import flops
from v4cli.plan.placement import Needs, Plan

HAND_OVER_S = 8e-6  # of a layer: its misses to the CPU and the results back, by two launches
NODE_S = 1.16e-6  # of a launch within a step's graph
NODES = {Kind.WINDOW: 19, Kind.CSA: 20, Kind.HCA: 19}  # launches of a layer, but for choices among entries
CHOICE = 4096  # scores of which one program chooses
SAMPLING_S = 0.4e-3  # of 129,280 logits, by the kernel library
FP32_SHARE = 0.27  # of a card's fp32 operations that attention reaches, whose sums have an order
INDEX_RATE = 3.1  # index scores take four products an instruction, and reach this much of the fp32 operations
CPU_SHARE = 0.85  # of the bandwidth of RAM that the CPU's experts reach
CPU_ROWS = 1.3e12  # operations/s of the CPU's experts where many rows share one


@dataclass(frozen=True)
class Rates:
    """Of a machine with a card. `cpu`: bytes/s of experts that the CPU computes."""

    card: Card
    cpu: float
    ssd: float
    sampling_s: float = SAMPLING_S
    cpu_rows: float = CPU_ROWS


def decode_s(plan: Plan, config: V4Config, n_tokens: int, rates: Rates) -> float:
    """Seconds of a token at n_tokens of context."""
    card, vram, ram = rates.card, plan.vram.reads, plan.ram.reads
    work, layers = flops(config, n_tokens), config.num_hidden_layers
    always = (vram["dense"] + vram["head"] + vram["KV"]) / card.read + ram.get("pinned KV", 0.0) / card.link
    misses = ram.get("experts", 0.0) / rates.cpu + plan.ssd.reads.get("experts", 0.0) / rates.ssd
    experts = max(vram.get("experts", 0.0) / card.read, misses)
    fixed = layers * HAND_OVER_S + launches(config, n_tokens) * NODE_S + rates.sampling_s
    attention = work.attention / (FP32_SHARE * card.fp32)
    index = work.indexer_scores / (INDEX_RATE * card.fp32) if selects(config, n_tokens) else 0.0
    return always + experts + fixed + attention + index


def launches(config: V4Config, n_tokens: int) -> int:
    """Of a decoded token in all layers, where contexts may have n_tokens: graphs are made for that."""
    kinds = [Kind.of(ratio) for ratio in config.compress_ratios[: config.num_hidden_layers]]
    return sum(NODES[kind] for kind in kinds) + kinds.count(Kind.CSA) * choices(
        n_tokens // OVERLAPPED, config.index_topk
    )


def choices(n: int, top: int) -> int:
    """Launches that choose `top` of n scores: each leaves so many of every CHOICE."""
    count = 1
    while n > CHOICE:
        n, count = -(-n // CHOICE) * top, count + 1
    return count


def prefill_s(plan: Plan, needs: Needs, config: V4Config, n_tokens: int, rates: Rates, chunk: int) -> float:
    """Seconds of a prompt of n_tokens, `chunk` at a time."""
    chunks = [chunk] * (n_tokens // chunk) + [n_tokens % chunk][: n_tokens % chunk]
    experts = {rows: _experts_s(plan, needs, config, rows, rates) for rows in set(chunks)}
    products = _row_s(config, n_tokens // 2, rates.card)
    return sum(max(rows * products, experts[rows]) for rows in chunks)


def _row_s(config: V4Config, n_tokens: int, card: Card) -> float:
    """What the card computes for one row at n_tokens of context."""
    work = flops(config, n_tokens)
    products = work.linear + work.compressor + work.indexer_projection + work.ffn
    scores = work.indexer_scores / card.int8 if selects(config, n_tokens) else 0.0
    return products / card.int8 + work.attention / (FP32_SHARE * card.fp32) + scores


def _experts_s(plan: Plan, needs: Needs, config: V4Config, rows: int, rates: Rates) -> float:
    """What a chunk takes for experts that are not in VRAM: any chunk of some length needs nearly all of them."""
    n, k = config.n_routed_experts, config.num_experts_per_tok
    asked = n * (1 - (1 - k / n) ** rows)  # of a layer, on average
    missing = config.num_hidden_layers * asked * (1 - plan.slots / needs.n_experts)
    per_row = 6 * config.hidden_size * config.moe_intermediate_size
    on_cpu = needs.expert / rates.cpu + rows * k / asked * per_row / rates.cpu_rows
    from_ssd = config.num_hidden_layers * asked * (1 - plan.resident) * needs.expert / rates.ssd
    return max(missing * min(needs.expert / rates.card.link, on_cpu), from_ssd)
