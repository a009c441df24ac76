"""Launches of the attention of one layer: what v4k_self_attention does, for rows of any timelines.

Of few rows all that reads x is one launch, and all that is made of its products another (feed.py). Of more, all rows
make their entries first. Then queries, choice and attention go through them tile by tile, as many rows as working
memory is given for. Rings and tails, which both read, change last.
"""

from dataclasses import replace

import numpy as np

from v4kernels import native
from v4kernels.cpu.bound import PackedAttention, PackedCompressor
from v4kernels.formats import GROUP
from v4kernels.native import SPARE_ROWS
from v4kernels.tree import OVERLAPPED, Indexer
from v4kernels.triton import attend, feed, index, kv, lines
from v4kernels.triton.batch import TritonBatch
from v4kernels.triton.dense import TILE, Constants, Dense, blocks, power
from v4kernels.triton.memory import Buffer
from v4kernels.triton.weights import GroupedWeight, Uploads

RUN = 256  # keys of a partial result
KEYS = 64  # keys of a program's block
PROGRAMS = 512  # that share the keys of a step's rows: a few for each core of a GPU
CHANNELS = 128  # of a program that pools
CHOICE = 4096  # scores of a program that chooses, at most


class DeviceCompressor:
    """`name` of its buffers: main or index."""

    def __init__(self, name: str, c: PackedCompressor, dense: Dense, uploads: Uploads):
        self.name, self.dense, self.is_index, self.ratio = name, dense, c.is_index, c.ratio
        self.wkv, self.wgate = uploads.weight(c.wkv), uploads.weight(c.wgate)
        self.ape, self.norm = uploads.array(c.ape), uploads.array(c.norm)
        self.dims, overlap = c.head_dim, c.ratio == OVERLAPPED
        self.width = self.dims * (2 if overlap else 1)
        tail = lines.KEY_TAIL_KV if c.is_index else lines.TAIL_KV
        self.slots = slots = c.ratio * (2 if overlap else 1) + SPARE_ROWS
        self.pooling: Constants = {
            "RATIO": c.ratio,
            "DIMS": self.dims,
            "SLOTS": slots,
            "TAIL": tail.value,
            "CHANNELS": CHANNELS,
        }
        self.packing: Constants = {"DIMS": self.dims, "ROPE": c.rope_dims, "EPS": c.eps, "RATIO": c.ratio}

    @property
    def linears(self) -> list:
        """Layers that read x, by name."""
        return [(self.name + " kv", self.wkv), (self.name + " gate", self.wgate)]

    def pooled(self, n: int) -> Buffer:
        """Room for what blocks are before they are packed."""
        return self.dense.take(self.name + " pooled", n, self.dims)

    def compress(self, x: Buffer, batch: TritonBatch, part: int) -> list[Buffer]:
        """Entries of the blocks that the rows x complete; and what `keep` wants."""
        dense, n, fed = self.dense, x.rows, self.dense.linears(self.linears, x)
        pooled = self.pooled(n)
        rows = batch.lines.at, part
        at = fed[0].at, fed[1].at, self.ape
        dense.launch(kv.pool, (n, blocks(self.dims, CHANNELS)), *at, *rows, pooled.at, **self.pooling)
        turns = batch.record.at("entry_turns", self.ratio).at
        if self.is_index:
            dense.launch(kv.pack_keys, (n,), pooled.at, self.norm, turns, *rows, **self.packing)
        else:
            dense.launch(kv.pack_entries, (n,), pooled.at, self.norm, turns, *rows, pooled.at, **self.packing)
        return fed

    def keep(self, fed: list[Buffer], batch: TritonBatch, part: int) -> None:
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
        self.sizes = {"HEADS": ix.heads, "ROWS": self.rows, "DIMS": ix.head_dim, "ROPE": ix.rope_dims, "EACH": 4}
        self.block = power(max(2 * ix.top_k, min(CHOICE, most_keys)))

    def keys(self, batch: TritonBatch) -> int:
        """Scores that a row has room for."""
        return max(1, self.most_keys if batch.few else batch.last // OVERLAPPED)

    def row_bytes(self, batch: TritonBatch) -> int:
        """Working memory of a row."""
        return 4 * self.keys(batch) + self.heads * self.dims * 4 + self.rows * self.dims * 2

    def room(self, n: int) -> tuple[int, int, int]:
        """Addresses for codes, scales and weights of queries."""
        codes = self.dense.take("index codes", n, self.rows * self.dims, np.int8)
        scale = self.dense.take("index scale", n, self.rows * self.dims // 32)
        return codes.at, scale.at, self.dense.take("index weight", n, self.rows).at

    def choose(self, made: tuple[int, int, int], n: int, batch: TritonBatch, rows: int, part: int) -> Buffer:
        """ids int32 (n, top_k), ascending, -1 behind them; `made`: of the queries; `rows`: address of their lines."""
        dense, stride = self.dense, self.keys(batch)
        scores = dense.take("index scores", n, stride)
        programs = min(blocks(stride, KEYS), max(1, PROGRAMS // n))
        sizes: Constants = {"ROWS": self.rows, "DIMS": self.dims, "BLOCK": KEYS, "ASM": dense.assembly}
        dense.launch(index.index_scores, (programs, n), *made, rows, part, scores.at, stride, warps=8, **sizes)
        return self._best(scores, rows)

    def _best(self, scores: Buffer, rows: int) -> Buffer:
        dense, n, top, block, ids, level = self.dense, scores.rows, self.top_k, self.block, scores, 0
        while True:
            count = blocks(scores.width, block)
            best = dense.take(f"best {level}", n, count * top)
            chosen = dense.take(f"chosen {level}", n, count * top, np.int32)
            arguments = scores.at, ids.at, rows, best.at, chosen.at, scores.width, level, int(count == 1)
            dense.launch(index.index_choice, (count, n), *arguments, warps=8, TOP=top, BLOCK=block)
            if count == 1:
                return chosen
            scores, ids, level = best, chosen, level + 1


class DeviceAttention:
    """Attention of layer `number`."""

    def __init__(self, a: PackedAttention, number: int, dense: Dense, uploads: Uploads, most_tokens: int, budget: int):
        """`most_tokens`: of a timeline; `budget`: bytes of working memory, about, that tiles of many rows may take."""
        self.a, self.part, self.dense, self.most_tokens, self.budget = a, 8 * number, dense, most_tokens, budget
        self.wq_a, self.wq_b, self.wkv = (uploads.weight(w) for w in (a.wq_a, a.wq_b, a.wkv))
        self.wo_a, self.wo_b = uploads.grouped(a.wo_a, a.groups), uploads.weight(a.wo_b)
        self.q_norm, self.kv_norm, self.sink = (uploads.array(v) for v in (a.q_norm, a.kv_norm, a.sink))
        self.entry_bytes, self.ring_rows = native.entry_bytes(a.head_dim, a.rope_dims), a.window + SPARE_ROWS
        self._whole_groups = isinstance(self.wo_a, GroupedWeight) and a.head_dim % GROUP == 0  # a head's own
        self.compressors = [DeviceCompressor("main", a.compressor, dense, uploads)] if a.compressor else []
        self.indexer = None
        if a.indexer is not None:
            self.compressors.append(DeviceCompressor("index", a.indexer.compressor, dense, uploads))
            self.indexer = DeviceIndexer(a.indexer, most_tokens // OVERLAPPED, dense, uploads)

    def attend(self, x: Buffer, batch: TritonBatch) -> Buffer:
        """x (n, D) -> (n, D)."""
        return self._of_few(x, batch) if batch.few else self._of_many(x, batch)

    def _of_few(self, x: Buffer, batch: TritonBatch) -> Buffer:
        dense, a, ix = self.dense, self.a, self.indexer
        named = [("low", self.wq_a), ("latent", self.wkv), *(w for c in self.compressors for w in c.linears)]
        low, latent, *fed_to = dense.linears([*named, *([("index products", ix.weights_proj)] if ix else [])], x)
        qr, fresh = self._feed(low, latent, fed_to, batch)
        turns = batch.turns(a.ratio).at
        if ix is None:
            raw = dense.linear("raw queries", self.wq_b, qr)
            return dense.product("attended", self.wo_b, self._joined(self._turned(raw, turns), fresh, batch, 0, fresh))
        queries, made = self._both_queries(ix, qr, fed_to[-1], turns)
        selected = ix.choose(made, x.rows, batch, batch.lines.at, self.part)
        return dense.product("attended", self.wo_b, self._joined(queries, fresh, batch, 0, selected))

    def _both_queries(
        self, ix: DeviceIndexer, qr: Buffer, products: Buffer, turns: int
    ) -> tuple[Buffer, tuple[int, int, int]]:
        """Those of attention, and what the indexer chooses by; `products`: with its weights_proj."""
        dense, a, n = self.dense, self.a, qr.rows
        raw, of_index = dense.linears([("raw queries", self.wq_b), ("index queries", ix.wq_b)], qr)
        queries, made = dense.take("queries", n, raw.width), ix.room(n)
        given = raw.at, turns, queries.at, of_index.at, products.at
        sizes: Constants = ix.sizes | {"ALL": a.heads, "DIM": a.head_dim, "EPS": a.eps}
        dense.launch(index.queries, (a.heads + ix.rows // 4, n), *given, *made, **sizes)
        return queries, made

    def _feed(self, low: Buffer, latent: Buffer, to: list[Buffer], batch: TritonBatch) -> tuple[Buffer, Buffer]:
        """qr and the rows' own entries of few rows; and all that compressors make of them, `to`: their products."""
        dense, a, n = self.dense, self.a, low.rows
        qr, fresh = dense.take("qr", n, low.width), dense.take("fresh", n, self.entry_bytes, np.uint8)
        q = dense.room_for("qr", n, qr.width) if self.wq_b.quantized else None
        made = (q.codes.at, q.scale.at) if q else (qr.at, qr.at)
        turns, ratio, none = batch.turns(a.ratio).at, a.ratio, qr.at
        of_blocks = [batch.record.at("entry_turns", ratio).at if ratio else none]
        for i in range(2):
            if i < len(self.compressors):
                c = self.compressors[i]
                of_blocks += [to[2 * i].at, to[2 * i + 1].at, c.ape, c.norm, c.pooled(n).at]
            else:
                of_blocks += [none] * 5
        arguments = low.at, self.q_norm, qr.at, *made, latent.at, self.kv_norm, turns, batch.lines.at, self.part
        sizes: Constants = {"RANK": low.width, "QUANTIZED": q is not None, "RATIO": ratio}
        sizes |= {"DIMS": a.head_dim, "ROPE": a.rope_dims, "EPS": a.eps}
        sizes["SLOTS"] = self.compressors[0].slots if ratio else 0
        sizes["KEY_DIMS"] = self.indexer.dims if self.indexer else 0
        grid = 2 + len(self.compressors), n
        dense.launch(feed.feed, grid, *arguments, fresh.at, self.ring_rows, *of_blocks, **sizes)
        return replace(qr, quantized=q), fresh

    def _of_many(self, x: Buffer, batch: TritonBatch) -> Buffer:
        dense, a, n, part = self.dense, self.a, x.rows, self.part
        x = replace(x, quantized=dense.quantize("attention input", x))
        latent = dense.linear("latent", self.wkv, x)
        fresh = dense.take("fresh", n, self.entry_bytes, np.uint8)
        turns, rows = batch.turns(a.ratio), batch.lines
        sizes: Constants = {"DIMS": a.head_dim, "ROPE": a.rope_dims, "EPS": a.eps, "RATIO": 0}
        dense.launch(kv.pack_entries, (n,), latent.at, self.kv_norm, turns.at, rows.at, part, fresh.at, **sizes)
        fed = [(c, c.compress(x, batch, part)) for c in self.compressors]
        out, tile = dense.take("attended", n, x.width), self._tile_rows(batch)
        for first in range(0, n, tile):
            some = min(tile, n - first)
            self._tile(x.part(first, some), fresh, batch, first, out.part(first, some))
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
        """Of many rows those that go through attention together: whole tiles within the budget."""
        a, room = self.a, self._room(batch)
        heads = a.heads * a.head_dim
        each = 8 * room * a.heads + 4 * room // RUN * heads + 16 * heads
        if self.indexer is not None and self._chosen(batch):
            each += self.indexer.row_bytes(batch)
        return max(TILE, self.budget // each // TILE * TILE)

    def _tile(self, x: Buffer, fresh: Buffer, batch: TritonBatch, first: int, out: Buffer) -> None:
        """Of many rows those from `first` on, x (n, D) -> out (n, D)."""
        dense, a, n = self.dense, self.a, x.rows
        low = dense.linear("low", self.wq_a, x)
        qr = dense.take("qr", n, low.width)
        dense.launch(kv.norm, (n,), low.at, self.q_norm, qr.at, COUNT=low.width, EPS=a.eps)
        if self.wq_b.quantized:
            qr = replace(qr, quantized=dense.quantize("qr", qr))
        turns, selected = batch.turns(a.ratio).part(first, n).at, fresh
        if self.indexer is not None and self._chosen(batch):
            products = dense.linear("index products", self.indexer.weights_proj, x)
            queries, made = self._both_queries(self.indexer, qr, products, turns)
            selected = self.indexer.choose(made, n, batch, batch.lines.part(first, n).at, self.part)
        else:
            queries = self._turned(dense.linear("raw queries", self.wq_b, qr), turns)
        dense.linear_to(out, self.wo_b, self._joined(queries, fresh, batch, first, selected))

    def _turned(self, raw: Buffer, turns: int) -> Buffer:
        """Queries (n, H * d), normed and rotated."""
        a, queries = self.a, self.dense.take("queries", raw.rows, raw.width)
        sizes: Constants = {"DIMS": a.head_dim, "ROPE": a.rope_dims, "EPS": a.eps}
        self.dense.launch(kv.turn_queries, (a.heads, raw.rows), raw.at, turns, queries.at, **sizes)
        return queries

    def _joined(self, q: Buffer, fresh: Buffer, batch: TritonBatch, first: int, selected: Buffer) -> Buffer:
        """What wo_b multiplies, of queries (n, H * d) of rows from `first` on; `selected`: anything, where nothing is
        chosen."""
        n, own = q.rows, fresh.at + first * self.entry_bytes
        rows, turns = batch.lines.part(first, n).at, batch.turns(self.a.ratio).part(first, n).at
        heads = self._heads(q, rows, own, selected.at, turns, batch)
        return self.dense.grouped("joined", self.wo_a, self.a.groups, heads)

    def _heads(
        self, queries: Buffer, rows: int, fresh: int, selected: int, turns: int, batch: TritonBatch
    ) -> Buffer:  # fmt: skip
        """Attention of queries (n, H * d), turned back."""
        dense, a, n, room = self.dense, self.a, queries.rows, self._room(batch)
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
        dense.launch(
            attend.attend_scores, grid, queries.at, *cached, scores.at, self.ring_rows, room, HEADS=each, **entries
        )
        grid, made = (min(runs, share), blocks(h, few), n), (weights.at, factors.at, peaks.at, totals.at)
        dense.launch(attend.attend_weights, grid, scores.at, rows, selected, *made, room, HEADS=few, warps=1, **some)
        grid = min(runs, share), blocks(h, each) * blocks(a.head_dim, columns), n
        dense.launch(
            attend.attend_values, grid, weights.at, factors.at, *cached, self.ring_rows, parts.at, room, HEADS=each,
            COLUMNS=columns, UNROLL=2, warps=1, **entries,
        )  # fmt: skip
        q = dense.room_for("heads", n, heads.width) if self._whole_groups else None
        to = (heads.at, q.codes.at, q.scale.at) if q else (heads.at, heads.at, heads.at)
        arguments = parts.at, peaks.at, totals.at, self.sink, turns, rows, selected, *to, room
        dense.launch(attend.attend_merge, (h, n), *arguments, QUANTIZED=q is not None, **sizes)
        return replace(heads, quantized=q)
