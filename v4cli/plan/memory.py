"""What computing takes besides weights on the cpu backend, from a config alone: sessions, and scratch of a step.

A session's bytes are those of its arrays (v4kernels/cpu/state.py) to the byte, a step's scratch is an upper bound;
tests compare both with what is really allocated, and so the memory of a card.
"""

from v4kernels.cpu import CpuOps
from v4kernels.cpu.memory import in_pages
from v4kernels.cpu.serve import job_dtype
from v4kernels.native import GROUP, KEY_GROUP, SPARE_ROWS, entry_bytes, key_bytes
from v4kernels.tree import OVERLAPPED

from v4cli.model.config import V4Config

CHUNK = CpuOps.chunk  # rows of a prefill that are computed at a time
FEW = 16  # rows at most that another session brings to the same step
POINTS = 16  # rewind points: places a session can go back to without recomputing much
FP32 = 4
ACTS = 1 + 2 * FP32 / GROUP  # bytes of a quantized activation: its code, its share of scale and offset
PADDED = 8 * GROUP  # activations of a row are padded to a multiple of this
BEST = 6 * FP32  # bytes of each choice of a selection: two candidates' scores and ids, and an order
SELECTED_ROWS, KEY_BLOCK = 256, 32  # rows that select at a time, and of these, those that scan keys together
SPLIT_KEYS, SPLIT_HEADS, FEW_QUERIES = 256, 32, 8  # of attention: keys and heads of a partial result; rows that split
SLOTS = 4096  # pairs of rows and experts that the kernels compute at a time
FEW_ROWS, JOBS = 8, 4  # rows that a card decodes in one graph; jobs of its experts on their way to the CPU
CONTEXT = 32_768  # tokens of a session that are planned for unless others are asked for
MOST_CHUNK, WORK_SHARE = 8192, 0.16  # rows of a prefill on a card; of its memory, that they may work in
TILES, TILE = 128 << 20, 64  # of a card: bytes for attention of some of the rows at a time, which are so many or more
RECORD_ROW = 32 << 10  # bytes of a step's record for each row: its place, its embedding, its turns
SLACK = 1 << 20  # of a step: small arrays


def ratios(config: V4Config) -> tuple[int, ...]:
    """Compression ratios of the trunk's layers."""
    return config.compress_ratios[: config.num_hidden_layers]


def kv_entry(config: V4Config) -> int:
    """Bytes of one KV entry (spec 4.1: 584 for V4)."""
    return entry_bytes(config.head_dim, config.qk_rope_head_dim)


# -- a session -----------------------------------------------------------------------------------------------------


def _compressors(config: V4Config, ratio: int) -> list[tuple[int, tuple[int, ...]]]:
    """Channels of a token's tail, and bytes of the rows of one entry, for each compressor of a layer."""
    if not ratio:
        return []
    if ratio != OVERLAPPED:
        return [(config.head_dim, (kv_entry(config),))]
    return [(2 * config.head_dim, (kv_entry(config),)), (2 * config.index_head_dim, key_bytes(config.index_head_dim))]


def timeline_bytes(config: V4Config, n_tokens: int, on_disk: bool = False) -> int:
    """RAM of the KV state after n_tokens: rings and tails with rows to spare, entries in whole pages unless they are
    in a file."""
    total = 0
    for ratio in ratios(config):
        total += (config.sliding_window + SPARE_ROWS) * kv_entry(config)
        for channels, rows in _compressors(config, ratio):
            total += 2 * FP32 * channels * (ratio * (2 if ratio == OVERLAPPED else 1) + SPARE_ROWS)
            if not on_disk:
                most = config.max_position_embeddings // ratio
                total += sum(in_pages(n_tokens // ratio, most, width) for width in rows)
    return total


def chosen_bytes(config: V4Config, n_tokens: int) -> int:
    """Of that, the entries of which a token reads those that the indexer chooses."""
    most, width = config.max_position_embeddings // OVERLAPPED, kv_entry(config)
    return ratios(config).count(OVERLAPPED) * in_pages(n_tokens // OVERLAPPED, most, width)


def point_bytes(config: V4Config, n_tokens: int) -> int:
    """A rewind point at n_tokens: the window's entries and the tails in use."""

    def rows(ratio: int) -> int:
        return n_tokens - max(0, (n_tokens // ratio - (ratio == OVERLAPPED)) * ratio)

    window = min(n_tokens, config.sliding_window) * kv_entry(config)
    return sum(
        window + sum(2 * FP32 * channels * rows(ratio) for channels, _ in _compressors(config, ratio))
        for ratio in ratios(config)
    )


def most_point_bytes(config: V4Config) -> int:
    """The largest that a rewind point gets: just before blocks of every ratio close."""
    block = max(1, *ratios(config))
    return point_bytes(config, -(-config.sliding_window // block) * block + block - 1)


def logits_bytes(config: V4Config) -> int:
    """Logits of the last token, those of the step that makes the next: of each row, where tokens are guessed."""
    return (1 + FEW) * FP32 * config.vocab_size


# -- a card --------------------------------------------------------------------------------------------------------


def pinned_bytes(config: V4Config) -> int:
    """Memory that card and host both see: the ring of jobs for the CPU, and what is said of every row of a step."""
    pairs = FEW_ROWS * config.num_experts_per_tok
    return JOBS * job_dtype(pairs, config.hidden_size).itemsize + FEW_ROWS * RECORD_ROW


def record_bytes(config: V4Config, rows: int) -> int:
    """What the host says of the rows of a step, in memory that both see."""
    return rows * (FP32 * config.hidden_size + RECORD_ROW // 8)


def card_work_bytes(config: V4Config, rows: int, n_tokens: int) -> int:
    """Memory of a card that steps up to n_tokens of context work in, a prefill of so many rows at a time: what is kept
    of every row, and of attention, whose memory layers of one ratio share, tiles. Steps of few rows have memory of
    their own, for the longest context, as they are recorded."""
    heads = config.num_attention_heads * config.head_dim
    kinds = sorted(set(ratios(config)))
    tiles = {ratio: _attended_bytes(config, ratio, n_tokens) for ratio in kinds}
    tile_rows = {ratio: min(-(-rows // TILE) * TILE, _tile_rows(each + 16 * heads)) for ratio, each in tiles.items()}
    attention = sum(tile_rows[ratio] * each for ratio, each in tiles.items()) + 16 * heads * max(tile_rows.values())
    most = config.max_position_embeddings
    few = sum(_attended_bytes(config, ratio, most, few=True) for ratio in kinds) + 16 * heads + FP32 * config.vocab_size
    return rows * _card_row_bytes(config) + attention + FEW_ROWS * (few + _card_row_bytes(config)) + SLACK


def _card_row_bytes(config: V4Config) -> int:
    """What a card keeps of each row of a step, attention left out."""
    c, k = config, config.num_experts_per_tok
    streams = FP32 * (c.hc_mult + 6) * c.hidden_size  # sublayers' inputs and results, the record's embedding
    quantized = round(2 * ACTS * c.hidden_size)
    fed = FP32 * 2 * 2 * (2 * c.head_dim + c.index_head_dim) + FP32 * c.head_dim + kv_entry(c)
    routing = FP32 * 2 * c.n_routed_experts + 12 * k
    experts = FP32 * k * c.hidden_size + round((k + 1) * (2 * FP32 + ACTS) * c.moe_intermediate_size)
    return streams + quantized + fed + routing + experts + RECORD_ROW // 8


def _attended_bytes(config: V4Config, ratio: int, n_tokens: int, few: bool = False) -> int:
    """Scores, weights and partial results of a row in a layer of that ratio; `few`: of steps that always choose."""
    c, entries = config, n_tokens // ratio if ratio else 0
    chosen = ratio == OVERLAPPED and (few or entries > c.index_topk)
    keys = -(-(c.sliding_window + (c.index_topk if chosen else entries)) // SPLIT_KEYS) * SPLIT_KEYS
    each = keys * c.num_attention_heads * 2 * FP32
    each += FP32 * keys // SPLIT_KEYS * c.num_attention_heads * (c.head_dim + 6)
    if chosen:
        scored = 2 * max(16, c.index_n_heads) * c.index_head_dim
        each += FP32 * entries + FP32 * c.index_n_heads * c.index_head_dim + scored
    return each


def _tile_rows(each: int) -> int:
    """Rows that go through attention at a time, of so many bytes each."""
    return max(TILE, TILES // each // TILE * TILE)


def card_chunk(config: V4Config, vram: int) -> int:
    """Rows of a prefill at a time that suit a card with so much memory: what they work in is a small part of it."""
    rows = MOST_CHUNK
    while rows > CHUNK and card_work_bytes(config, rows, CONTEXT) > vram * WORK_SHARE:
        rows //= 2
    return rows


# -- a step --------------------------------------------------------------------------------------------------------


def scratch_bytes(config: V4Config, rows: int, n_tokens: int, threads: int) -> int:
    """Working memory of a step of `rows` rows at n_tokens of context, experts on demand: results and inputs of the ops,
    which stay, and the most that a kernel takes meanwhile."""
    return rows * _row_bytes(config) + _kernel_bytes(config, rows, n_tokens, threads) + SLACK


def _row_bytes(config: V4Config) -> int:
    """Of one row: what the op table and the bank of experts keep for the next step (CpuOps, Streamed)."""
    c = config
    d, mix, k = c.hidden_size, c.hc_mult + c.hc_mult**2, c.num_experts_per_tok
    heads = c.num_attention_heads * c.head_dim
    attention = 2 * FP32 * heads + FP32 * c.q_lora_rank + kv_entry(c) + FP32 * c.index_topk + 5 * 64  # aligned
    routing = 2 * (k * (8 + FP32) + FP32 * c.n_routed_experts)
    rotations = FP32 * c.qk_rope_head_dim * len(set(ratios(c)))
    inputs = FP32 * 3 * (d + mix)
    results = FP32 * (c.hc_mult + 4) * d  # streams, attention, experts, hidden, the rows whose logits are wanted
    pairs = FP32 * 2 * k * d
    passing = FP32 * d + 2 * FP32 * c.n_routed_experts  # adding experts in order; what the policy learns of scores
    return 8 + rotations + inputs + results + attention + routing + pairs + passing


def _kernel_bytes(config: V4Config, rows: int, n_tokens: int, threads: int) -> int:
    """The most scratch of any kernel."""
    c = config
    d, heads, low = c.hidden_size, c.num_attention_heads * c.head_dim, c.o_groups * c.o_lora_rank
    project = rows * (FP32 * low + max(c.o_groups * _acts(heads // c.o_groups), _acts(low)))
    queries = rows * max(_acts(d), _acts(c.q_lora_rank))
    compress = rows * (2 * FP32 * 2 * max(c.head_dim, c.index_head_dim) + _acts(d))
    pairs = min(rows * c.num_experts_per_tok, SLOTS)
    experts = pairs * (_acts(d) + _acts(c.moe_intermediate_size) + 2 * FP32)
    select = _select_bytes(c, rows, threads) if OVERLAPPED in ratios(c) else 0
    return int(max(project, queries, compress, experts, select, _attend_bytes(c, n_tokens, threads)))


def _acts(cols: int) -> float:
    """Quantized inputs of one row."""
    return -(-cols // PADDED) * PADDED * ACTS


def _select_bytes(config: V4Config, rows: int, threads: int) -> float:
    """Index queries in fp32 and as codes, and the best so far of the rows that select together, range by range."""
    c = config
    query = c.index_n_heads * (c.index_head_dim * (FP32 + 1 + 2 * FP32 / KEY_GROUP) + 2 * FP32) + 8
    blocks = -(-min(rows, SELECTED_ROWS) // KEY_BLOCK)
    bests = KEY_BLOCK * (2 * threads + blocks) * BEST * c.index_topk
    return rows * query + max(bests, rows * _acts(c.q_lora_rank))


def _attend_bytes(config: V4Config, n_tokens: int, threads: int) -> int:
    """Partial results of attention: of all splits of few rows, or of two splits in each thread."""
    keys = [_keys(config, ratio, n_tokens) for ratio in ratios(config)]
    splits = -(-max(keys) // SPLIT_KEYS)
    blocks = -(-FEW_QUERIES * config.num_attention_heads // SPLIT_HEADS)
    return FP32 * SPLIT_HEADS * (config.head_dim + 2) * max(blocks * splits, 2 * threads)


def _keys(config: V4Config, ratio: int, n_tokens: int) -> int:
    """Most keys that a row attends to in a layer."""
    entries = n_tokens // ratio if ratio else 0
    return config.sliding_window + (min(entries, config.index_topk) if ratio == OVERLAPPED else entries)
