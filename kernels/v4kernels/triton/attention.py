"""Launches of the attention of one layer: what v4k_self_attention does, for rows of any timelines.

All rows make their entries first. Then queries, choice and attention go through them tile by tile, as many rows as
working memory is given for. Rings and tails, which both read, change last.
"""

import numpy as np

from v4kernels import native
from v4kernels.cpu.bound import PackedAttention, PackedCompressor
from v4kernels.native import SPARE_ROWS
from v4kernels.tree import OVERLAPPED, Indexer
from v4kernels.triton import attend, index, kv, lines
from v4kernels.triton.batch import TritonBatch
from v4kernels.triton.dense import FEW, TILE, Constants, Dense, Quantized, blocks
from v4kernels.triton.memory import Buffer
from v4kernels.triton.weights import Uploads

RUN = 256  # keys of a partial result
KEYS = 64  # keys of a program's block
PROGRAMS = 512  # that share the keys of a step's rows: a few for each core of a GPU
CHANNELS = 128  # of a program that pools
CHOICE = 4096  # scores of a program that chooses


def power(n: int) -> int:
    """The next power of two."""
    return 1 << (n - 1).bit_length()


class DeviceCompressor:
    """`name` of its buffers: main or index."""

    def __init__(self, name: str, c: PackedCompressor, dense: Dense, uploads: Uploads):
        self.name, self.dense, self.is_index, self.ratio = name, dense, c.is_index, c.ratio
        self.wkv, self.wgate = uploads.weight(c.wkv), uploads.weight(c.wgate)
        self.ape, self.norm = uploads.array(c.ape), uploads.array(c.norm)
        self.dims, overlap = c.head_dim, c.ratio == OVERLAPPED
        self.width = self.dims * (2 if overlap else 1)
        tail = lines.KEY_TAIL_KV if c.is_index else lines.TAIL_KV
        slots = c.ratio * (2 if overlap else 1) + SPARE_ROWS
        self.pooling: Constants = {
            "RATIO": c.ratio,
            "DIMS": self.dims,
            "SLOTS": slots,
            "TAIL": tail.value,
            "CHANNELS": CHANNELS,
        }
        self.packing: Constants = {"DIMS": self.dims, "ROPE": c.rope_dims, "EPS": c.eps, "RATIO": c.ratio}

    def compress(self, x: Buffer, q: Quantized, batch: TritonBatch, part: int) -> tuple[Buffer, Buffer]:
        """Entries of the blocks that the rows x complete; and what `keep` wants."""
        dense, n, name = self.dense, x.rows, self.name
        fed = tuple(dense.linear(f"{name} {what}", w, x, q) for what, w in (("kv", self.wkv), ("gate", self.wgate)))
        pooled = dense.take(name + " pooled", n, self.dims)
        rows = batch.lines.at, part
        at = fed[0].at, fed[1].at, self.ape
        dense.launch(kv.pool, (n, blocks(self.dims, CHANNELS)), *at, *rows, pooled.at, **self.pooling)
        turns = batch.record.at("entry_turns", self.ratio).at
        if self.is_index:
            dense.launch(kv.pack_keys, (n,), pooled.at, self.norm, turns, *rows, **self.packing)
        else:
            dense.launch(kv.pack_entries, (n,), pooled.at, self.norm, turns, *rows, pooled.at, **self.packing)
        return fed[0], fed[1]

    def keep(self, fed: tuple[Buffer, Buffer], batch: TritonBatch, part: int) -> None:
        """Tails, once nothing reads them in this step any more."""
        grid = fed[0].rows, blocks(self.width, CHANNELS)
        arguments = fed[0].at, fed[1].at, self.ape, batch.lines.at, part
        self.dense.launch(kv.keep_tail, grid, *arguments, **self.pooling)


class DeviceIndexer:
    """Chooses entries for rows (index.py)."""

    def __init__(self, ix: Indexer, most_keys: int, dense: Dense, uploads: Uploads):
        self.dense, self.most_keys = dense, most_keys
        self.wq_b, self.weights_proj = uploads.weight(ix.wq_b), uploads.weight(ix.weights_proj)
        self.heads, self.dims, self.top_k, self.rope = ix.heads, ix.head_dim, ix.top_k, ix.rope_dims
        self.rows = max(16, power(ix.heads))

    def keys(self, batch: TritonBatch) -> int:
        """Scores that a row has room for."""
        return max(1, self.most_keys if batch.few else batch.last // OVERLAPPED)

    def row_bytes(self, batch: TritonBatch) -> int:
        """Working memory of a row."""
        return 4 * self.keys(batch) + self.heads * self.dims * 4 + self.rows * self.dims * 2

    def choose(self, x: Buffer, qr: Buffer, q: Quantized | None, batch: TritonBatch, first: int, part: int) -> Buffer:
        """ids int32 (n, top_k) of rows from `first` on, ascending, -1 behind them."""
        dense, n = self.dense, x.rows
        queries = dense.linear("index queries", self.wq_b, qr, q)
        products = dense.linear("index products", self.weights_proj, x)
        codes = dense.take("index codes", n, self.rows * self.dims, np.int8)
        scale = dense.take("index scale", n, self.rows * self.dims // 32)
        weight = dense.take("index weight", n, self.rows)
        turns, rows = batch.turns(OVERLAPPED).part(first, n).at, batch.lines.part(first, n).at
        sizes: Constants = {"HEADS": self.heads, "ROWS": self.rows, "DIMS": self.dims, "ROPE": self.rope, "EACH": 4}
        made = codes.at, scale.at, weight.at
        dense.launch(index.index_queries, (self.rows // 4, n), queries.at, products.at, turns, *made, **sizes)
        stride = self.keys(batch)
        scores = dense.take("index scores", n, stride)
        programs = min(blocks(stride, KEYS), max(1, PROGRAMS // n))
        sizes = {"ROWS": self.rows, "DIMS": self.dims, "BLOCK": KEYS, "ASM": dense.assembly}
        dense.launch(index.index_scores, (programs, n), *made, rows, part, scores.at, stride, warps=8, **sizes)
        return self._best(scores, rows)

    def _best(self, scores: Buffer, rows: int) -> Buffer:
        dense, n, top, ids, level = self.dense, scores.rows, self.top_k, scores, 0
        block = max(2 * top, min(CHOICE, power(scores.width)))
        block = power(block)
        while True:
            count = blocks(scores.width, block)
            best = dense.take(f"best {level}", n, count * top)
            chosen = dense.take(f"chosen {level}", n, count * top, np.int32)
            sizes = {"LEVEL": level, "LAST": count == 1, "TOP": top, "BLOCK": block}
            arguments = scores.at, ids.at, rows, best.at, chosen.at, scores.width
            dense.launch(index.index_choice, (count, n), *arguments, warps=8, **sizes)
            if count == 1:
                return chosen
            scores, ids, level = best, chosen, level + 1


class DeviceAttention:
    """Attention of layer `number`."""

    def __init__(self, a: PackedAttention, number: int, dense: Dense, uploads: Uploads, most_tokens: int, budget: int):
        """`most_tokens`: of a timeline; `budget`: bytes of working memory, about, that tiles of many rows may take."""
        self.a, self.part, self.dense, self.most_tokens, self.budget = a, 8 * number, dense, most_tokens, budget
        self.wq_a, self.wq_b, self.wkv = (uploads.weight(w) for w in (a.wq_a, a.wq_b, a.wkv))
        self.wo_a, self.wo_b = uploads.grouped(a.wo_a, a.groups, FEW), uploads.weight(a.wo_b)
        self.q_norm, self.kv_norm, self.sink = (uploads.array(v) for v in (a.q_norm, a.kv_norm, a.sink))
        self.entry_bytes, self.ring_rows = native.entry_bytes(a.head_dim, a.rope_dims), a.window + SPARE_ROWS
        self.compressors = [DeviceCompressor("main", a.compressor, dense, uploads)] if a.compressor else []
        self.indexer = None
        if a.indexer is not None:
            self.compressors.append(DeviceCompressor("index", a.indexer.compressor, dense, uploads))
            self.indexer = DeviceIndexer(a.indexer, most_tokens // OVERLAPPED, dense, uploads)

    def attend(self, x: Buffer, batch: TritonBatch) -> Buffer:
        """x (n, D) -> (n, D)."""
        dense, a, n, part = self.dense, self.a, x.rows, self.part
        inputs = dense.quantize("attention input", x)
        latent = dense.linear("latent", self.wkv, x, inputs)
        fresh = dense.take("fresh", n, self.entry_bytes, np.uint8)
        turns, rows = batch.turns(a.ratio), batch.lines
        sizes: Constants = {"DIMS": a.head_dim, "ROPE": a.rope_dims, "EPS": a.eps, "RATIO": 0}
        dense.launch(kv.pack_entries, (n,), latent.at, self.kv_norm, turns.at, rows.at, part, fresh.at, **sizes)
        fed = [(c, c.compress(x, inputs, batch, part)) for c in self.compressors]
        out, tile = dense.take("attended", n, x.width), self._tile_rows(batch)
        for first in range(0, n, tile):
            some = min(tile, n - first)
            self._tile(x.part(first, some), inputs.part(first, some), fresh, batch, first, out.part(first, some))
        dense.launch(attend.keep_window, (n,), fresh.at, rows.at, part, self.ring_rows, BYTES=self.entry_bytes, warps=1)
        for c, made in fed:
            c.keep(made, batch, part)
        return out

    def _chosen(self, batch: TritonBatch) -> int:
        """How many entries are chosen for each row; 0 where all are seen. Steps that may be recorded always choose."""
        ix = self.indexer
        return ix.top_k if ix and (batch.few or batch.last // OVERLAPPED > ix.top_k) else 0

    def _room(self, batch: TritonBatch) -> int:
        """Keys that a row has room for, whole runs."""
        ratio, last = self.a.ratio, self.most_tokens if batch.few else batch.last
        entries = self._chosen(batch) or (last // ratio if ratio else 0)
        return blocks(self.a.window + entries, RUN) * RUN

    def _tile_rows(self, batch: TritonBatch) -> int:
        """Rows that go through attention together: all that are few, of more whole tiles within the budget."""
        if batch.few:
            return FEW
        a, room = self.a, self._room(batch)
        heads = a.heads * a.head_dim
        each = 8 * room * a.heads + 4 * room // RUN * heads + 16 * heads
        if self.indexer is not None and self._chosen(batch):
            each += self.indexer.row_bytes(batch)
        return max(TILE, self.budget // each // TILE * TILE)

    def _tile(
        self, x: Buffer, inputs: Quantized, fresh: Buffer, batch: TritonBatch, first: int, out: Buffer
    ) -> None:  # fmt: skip
        """Rows from `first` on, x (n, D) -> out (n, D)."""
        dense, a, n = self.dense, self.a, x.rows
        low = dense.linear("low", self.wq_a, x, inputs)
        qr = dense.take("qr", n, low.width)
        dense.launch(kv.norm, (n,), low.at, self.q_norm, qr.at, COUNT=low.width, EPS=a.eps)
        q = dense.quantize("qr", qr) if self.wq_b.quantized else None
        raw = dense.linear("raw queries", self.wq_b, qr, q)
        queries = dense.take("queries", n, raw.width)
        turns = batch.turns(a.ratio).part(first, n).at
        sizes: Constants = {"DIMS": a.head_dim, "ROPE": a.rope_dims, "EPS": a.eps}
        dense.launch(kv.turn_queries, (a.heads, n), raw.at, turns, queries.at, **sizes)
        rows, selected = batch.lines.part(first, n).at, fresh.at  # not read where nothing is chosen
        if self.indexer is not None and self._chosen(batch):
            selected = self.indexer.choose(x, qr, q, batch, first, self.part).at
        heads = self._heads(queries, rows, fresh.at + first * self.entry_bytes, selected, turns, batch)
        joined = dense.grouped("joined", self.wo_a, a.groups, heads)
        dense.linear_to(out, self.wo_b, joined)

    def _heads(
        self, q: Buffer, rows: int, fresh: int, selected: int, turns: int, batch: TritonBatch
    ) -> Buffer:  # fmt: skip
        """Attention of queries (n, H * d), turned back."""
        dense, a, n, room = self.dense, self.a, q.rows, self._room(batch)
        h, runs = a.heads, room // RUN
        scores, weights = dense.take("scores", n, room * h), dense.take("weights", n, room * h)
        factors = dense.take("factors", n, room // KEYS * h)
        peaks, totals = dense.take("peaks", n, runs * h), dense.take("totals", n, runs * h)
        parts, heads = dense.take("parts", n, runs * h * a.head_dim), dense.take("heads", n, h * a.head_dim)
        some: Constants = {"ALL": h, "WINDOW": a.window, "RATIO": a.ratio, "TOP": self._chosen(batch)}
        sizes = some | {"DIM": a.head_dim, "ROPE": a.rope_dims}
        entries = sizes | {"BYTES": self.entry_bytes}
        each, few, columns = min(16, power(h)), min(4, power(h)), min(128, power(a.head_dim))
        share, cached = max(1, PROGRAMS // n), (rows, self.part, fresh, selected)
        grid = min(room // KEYS, share), blocks(h, each), n
        dense.launch(attend.attend_scores, grid, q.at, *cached, scores.at, self.ring_rows, room, HEADS=each, **entries)
        grid, made = (min(runs, share), blocks(h, few), n), (weights.at, factors.at, peaks.at, totals.at)
        dense.launch(attend.attend_weights, grid, scores.at, rows, selected, *made, room, HEADS=few, warps=1, **some)
        grid = min(runs, share), blocks(h, each) * blocks(a.head_dim, columns), n
        dense.launch(
            attend.attend_values, grid, weights.at, factors.at, *cached, self.ring_rows, parts.at, room, HEADS=each,
            COLUMNS=columns, UNROLL=2, warps=1, **entries,
        )  # fmt: skip
        arguments = parts.at, peaks.at, totals.at, self.sink, turns, rows, selected, heads.at, room
        dense.launch(attend.attend_merge, (h, n), *arguments, **sizes)
        return heads
