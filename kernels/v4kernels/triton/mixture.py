"""Launches of the feed-forward sublayer: router, shared expert, and routed experts that lie in slots.

A pair is a row and one of its experts (experts.py). For few rows nothing is asked of the host, so that it can be
recorded; for more, the host sorts pairs by expert, and matrix units multiply each expert with its rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from v4kernels.api import Routing
from v4kernels.cpu.bound import PackedWeight
from v4kernels.tree import Mixture
from v4kernels.triton import experts, gemm, route
from v4kernels.triton.batch import TritonBatch
from v4kernels.triton.dense import FEW, TILE, Constants, Dense, Quantized, blocks, dividing
from v4kernels.triton.memory import Back, Buffer, Later
from v4kernels.triton.weights import DeviceWeight, SlotKind, Slots, Uploads


class DeviceMixture:
    """Router and shared expert of one layer; its routed experts, by kind, unless a bank of its own holds them."""

    def __init__(self, ffn: Mixture[PackedWeight, np.ndarray], dense: Dense, uploads: Uploads):
        self.dense, self.top_k, self.scale, self.limit = dense, ffn.top_k, ffn.scale, ffn.limit
        self.gate, self.bias = uploads.weight(ffn.gate), uploads.array(ffn.gate_bias)
        self.n_experts = ffn.gate.matrix.rows
        (self.shared,) = uploads.slots([ffn.shared])
        self.slots = uploads.slots(ffn.experts)
        self.one_slot = uploads.array(np.zeros(max(self.n_experts, 1)), np.int16)  # every expert has one
        self.of_shared = uploads.array(np.zeros(FEW), np.int64), uploads.array(np.ones(FEW))

    def routed(self, layer: int, x: Buffer, batch: TritonBatch | None) -> Routing[Buffer]:
        """By token of a batch, or by score."""
        dense, n, k, e = self.dense, x.rows, self.top_k, self.n_experts
        products = dense.linear("gate products", self.gate, x)
        chosen, weights = dense.take("chosen", n, k, np.int64), dense.take("chosen weights", n, k)
        scores = dense.take("router scores", n, e)
        table, tokens = self.bias, self.bias  # not read
        if batch is not None:
            table, tokens = batch.record.at("hashed", layer).at, batch.record.at("numbers").at
        sizes = {"EXPERTS": e, "TOP_K": k, "BY_TABLE": batch is not None, "BLOCK": 1 << (max(e, k) - 1).bit_length()}
        made = chosen.at, weights.at, scores.at
        arguments = products.at, self.bias, table, tokens, *made, self.scale
        dense.launch(route.route, (n,), *arguments, warps=1, **sizes)
        return Routing(chosen, weights, scores)

    def shared_expert(self, x: Buffer) -> Buffer:
        """x (n, D) -> (n, D)."""
        dense, kind, n = self.dense, self.shared.kind, x.rows
        q, y = dense.quantize("expert input", x), dense.take("shared", n, kind.dim)
        if n <= FEW:  # beside others, if they are on the device
            return Later(y.at, n, kind.dim, compute=lambda _: self._pairs(self.shared, self.of_shared, q, y, 1))
        w1, w3, w2 = (self._of_shared(i) for i in range(3))
        gate, up = dense.linears([("shared gate", w1), ("shared up", w3)], replace(x, quantized=q))
        return dense.linear_to(y, w2, replace(gate, quantized=self._swiglu(gate, up, dense.ones(n))))

    def _of_shared(self, i: int) -> DeviceWeight:
        kind, at = self.shared.kind, self.shared.memory_at
        shape = (kind.dim, kind.inner) if i == 2 else (kind.inner, kind.dim)
        return DeviceWeight(kind.forms[i], at + kind.places[2 * i], at + kind.places[2 * i + 1], *shape)

    def _swiglu(self, gate: Buffer, up: Buffer, weights: int) -> Quantized:
        """What w2 multiplies, of products with w1 and w3 (pairs, I)."""
        dense, n, inner = self.dense, gate.rows, gate.width
        z, groups = dense.room_for("z", n, inner), n * inner // 32
        arguments = gate.at, up.at, weights, z.codes.at, z.scale.at, self.limit, groups
        dense.launch(experts.swiglu_pairs, (blocks(groups, 32),), *arguments, N=inner, BLOCK=32)
        return z

    def pairs(self, kinds: Sequence[Slots], x: Buffer, routing: Routing[Buffer], out: Buffer) -> Buffer:
        """y (n, top_k * D): rows of those pairs of few rows x whose experts have a slot; and `out`, what the shared
        expert is to make of x, is made."""
        y, q = self.dense.take("pairs", x.rows, self.top_k * x.width), self.dense.quantize("expert input", x)
        said = routing.chosen.at, routing.weights.at
        for number, slots in enumerate(kinds):
            if number == 0 and isinstance(out, Later):
                self._pairs_and_shared(slots, said, q, y, out)
            else:
                self._pairs(slots, said, q, y, self.top_k)
        return y

    def _pairs(self, slots: Slots, said: tuple[int, int], q: Quantized, y: Buffer, top_k: int) -> None:
        """`said`: ids int64 and weights fp32 (n, top_k); q: the rows quantized."""
        dense, kind, rows, n = self.dense, slots.kind, q.codes.rows, q.codes.rows * top_k
        z, chosen = dense.room_for("pair", rows, top_k * kind.inner), (slots.memory_at, slots.table_at, said[0])
        sizes: Constants = {"K": kind.dim, "N": kind.inner, "TOP_K": top_k, "ASM": dense.assembly}
        sizes |= kind.constants("w1", "w3")
        arguments: tuple = *chosen, said[1], q.codes.at, q.scale.at, z.codes.at, z.scale.at, self.limit
        dense.launch(experts.gate_up, (n, kind.inner // 32), *arguments, **sizes)
        each = dividing(kind.dim)
        sizes = {"K": kind.inner, "N": kind.dim, "ROWS": each, "ASM": dense.assembly}
        sizes |= kind.constants("w2")
        arguments = *chosen, z.codes.at, z.scale.at, y.at
        dense.launch(experts.down, (n, kind.dim // each), *arguments, **sizes)

    def _pairs_and_shared(self, slots: Slots, said: tuple[int, int], q: Quantized, y: Buffer, out: Buffer) -> None:
        """The same, and out (n, D) of the shared expert."""
        dense, kind, own, rows, k = self.dense, slots.kind, self.shared.kind, out.rows, self.top_k
        z, shared_z = dense.room_for("pair", rows, k * kind.inner), dense.room_for("shared pair", rows, own.inner)
        chosen, made = (slots.memory_at, slots.table_at, said[0]), (z.codes.at, z.scale.at)
        made += shared_z.codes.at, shared_z.scale.at

        def of_both(*names: str) -> Constants:
            shared = {f"SHARED_{name}": value for name, value in own.constants(*names).items() if name != "SLOT"}
            return kind.constants(*names) | shared | {"ASM": dense.assembly}

        n, shared_at = rows * k, self.shared.memory_at
        sizes: Constants = {"K": kind.dim, "N": kind.inner, "TOP_K": k, "SHARED_N": own.inner}
        arguments: tuple = *chosen, said[1], shared_at, q.codes.at, q.scale.at, *made, self.limit, n
        grid = n + rows, max(kind.inner, own.inner) // 32
        dense.launch(experts.gate_up_all, grid, *arguments, **sizes, **of_both("w1", "w3"))
        each = dividing(kind.dim)
        sizes = {"K": kind.inner, "N": kind.dim, "SHARED_K": own.inner, "ROWS": each}
        arguments = *chosen, shared_at, *made, y.at, out.at, n
        dense.launch(experts.down_all, (n + rows, kind.dim // each), *arguments, **sizes, **of_both("w2"))

    def sorted_pairs(
        self, kind: SlotKind, memory_at: int, slot: np.ndarray, weights: int, q: Quantized, share: int, y: Buffer
    ) -> None:
        """y (pairs, D): rows of those pairs that have a slot (pairs,), -1: none; `share` of them are a row's. `weights`
        fp32 (pairs,); q: the rows quantized."""
        dense, n = self.dense, len(slot)
        order = np.flatnonzero(slot >= 0)
        if not len(order):
            return
        order = order[np.argsort(slot[order], kind="stable")].astype(np.int32)
        tiles = tiled(slot[order])
        order_at, tiles_at = dense.said("order", order), dense.said("tiles", tiles)
        gate, up = dense.take("pairs gate", n, kind.inner), dense.take("pairs up", n, kind.inner)
        sizes = {"TOKENS": TILE, "ROWS": TILE, "ASM": dense.assembly}

        def multiply(name: str, inputs: Quantized, to: Buffer, share: int) -> None:
            shape: Constants = {"K": inputs.codes.width, "N": to.width, "SHARE": share}
            arguments = memory_at, tiles_at, order_at, inputs.codes.at, inputs.scale.at, to.at
            grid, constants = (len(tiles), blocks(to.width, TILE)), kind.grouped(name)
            dense.launch(gemm.gemm_experts, grid, *arguments, warps=8, stages=2, **shape, **constants, **sizes)

        multiply("w1", q, gate, share)
        multiply("w3", q, up, share)
        multiply("w2", self._swiglu(gate, up, weights), y, 1)

    def add(self, ids: int, hits: Buffer, out: Buffer, back: Back | None = None) -> None:
        """out (n, D) += rows of pairs (n * top_k, D) by ascending id; or the sum goes back into streams."""
        n, zeros = out.rows, self.dense.take("zeros", out.rows, out.width)
        grid, to = (blocks(out.width, 512), n), (back.mix, back.streams) if back else (out.at, out.at)
        arguments = self.one_slot, ids, zeros.at, hits.at, hits.at, out.at, *to
        sizes = {"N": out.width, "TOP_K": self.top_k, "S": back.count if back else 0, "BLOCK": 512}
        self.dense.launch(experts.add_experts, grid, *arguments, **sizes)


def tiled(slot: np.ndarray) -> np.ndarray:
    """Slots of pairs (n,), ascending -> int32 (tiles, 3): slot, first pair, number of pairs, up to TILE each."""
    starts = np.flatnonzero(np.diff(slot, prepend=-1))
    counts = np.diff(np.append(starts, len(slot)))
    tiles = [
        (slot[start], start + first, min(TILE, count - first))
        for start, count in zip(starts, counts)
        for first in range(0, count, TILE)
    ]
    return np.array(tiles, np.int32).reshape(-1, 3)


class Resident:
    """The bank (api.py) of experts that all lie in device memory: nothing has to be fetched."""

    repeatable = True

    def __init__(self, layers: Sequence[DeviceMixture], dense: Dense, budget: int):
        self.layers, self.dense, self.budget = layers, dense, budget

    def doubt(self, rows: Sequence[int]) -> Callable[[int], None]:
        return lambda row: None

    def begin_step(self, batch: TritonBatch) -> None: ...

    def foresee(self, layer: int, streams: Buffer) -> None: ...

    def end_step(self, rows: int) -> None: ...

    def begin(self, layer: int, x: Buffer, routing: Routing[Buffer], streams: Buffer) -> "Mixing":
        return Mixing(self, self.layers[layer], x, routing)


@dataclass(slots=True)
class Mixing:
    """Routed experts of one layer, computed when they are added."""

    bank: Resident
    ffn: DeviceMixture
    x: Buffer
    routing: Routing[Buffer]

    def add_to(self, out: Buffer) -> Buffer:
        dense, ffn, n, k = self.bank.dense, self.ffn, self.x.rows, self.ffn.top_k
        if n <= FEW:
            y, ids = ffn.pairs(ffn.slots, self.x, self.routing, out), self.routing.chosen.at
            return Later(out.at, n, out.width, compute=lambda back: ffn.add(ids, y, out, back))
        q = dense.quantize("expert input", self.x)
        chosen = dense.values(self.routing.chosen)
        each = max(4 * k * (2 * slots.kind.inner + self.x.width) for slots in ffn.slots)
        tile = max(TILE, self.bank.budget // each // TILE * TILE)
        for first in range(0, n, tile):
            some = min(tile, n - first)
            self._add_rows(chosen[first : first + some], first, q.part(first, some), out.part(first, some))
        return out

    def _add_rows(self, chosen: np.ndarray, first: int, q: Quantized, out: Buffer) -> None:
        dense, ffn, (n, k) = self.bank.dense, self.ffn, chosen.shape
        weights, ids = (buffer.part(first, n).at for buffer in (self.routing.weights, self.routing.chosen))
        y = dense.many.take("pairs", n * k, out.width)
        for slots in ffn.slots:
            slot = slots.numbers[chosen].reshape(-1)
            ffn.sorted_pairs(slots.kind, slots.memory_at, slot, weights, q, k, y)
        ffn.add(ids, y, out)
