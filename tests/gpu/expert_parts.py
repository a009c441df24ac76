"""Experts for tests: kernels of experts.py in the PTX machine, and the same by the CPU library. Import behind
`pytest.importorskip("triton")`."""

from dataclasses import dataclass

import gpu_kernels
import numpy as np
import torch
from gpu_kernels import blocks
from test_kernels import WEIGHTS, generator
from v4kernels import native
from v4kernels.formats import FORMATS
from v4kernels.triton import experts

PARTS = "w1", "w3", "w2"


@dataclass(frozen=True)
class Kind:
    """Sizes and formats that a set of experts has in common."""

    dim: int
    inner: int
    forms: tuple[str, str, str]  # of w1, w3, w2

    def shapes(self) -> list[tuple[int, int]]:
        return [(self.inner, self.dim), (self.inner, self.dim), (self.dim, self.inner)]

    def layout(self) -> dict[str, int]:
        """Where the parts of an expert are in a slot, by the kernels' names, and SLOT: one after the other, as in a
        store."""
        at, end = {}, 0
        for part, form, (rows, cols) in zip(PARTS, self.forms, self.shapes()):
            about = FORMATS[form]
            at[part.upper()], end = end, end + rows * cols // 32 * about.code_bytes
            at[f"{part.upper()}_SCALE"], end = end, end + about.n_bytes(rows, cols)[1]
        return at | {"SLOT": end + 16}

    def formats(self) -> dict[str, str]:
        return {f"{part.upper()}_FORMAT": form for part, form in zip(PARTS, self.forms)}

    def gate_up(self, top_k: int) -> dict[str, int | str]:
        used = "W1 W1_SCALE W3 W3_SCALE SLOT W1_FORMAT W3_FORMAT".split()
        every = self.layout() | self.formats()
        return {"K": self.dim, "N": self.inner, "TOP_K": top_k} | {name: every[name] for name in used}

    def down(self) -> dict[str, int | str]:
        every = self.layout() | self.formats()
        return {"K": self.inner, "N": self.dim, "ROWS": 32} | {
            name: every[name] for name in ("W2", "W2_SCALE", "SLOT", "W2_FORMAT")
        }


class Experts:
    """Random experts: their matrices described to the library, and each as the bytes of a slot."""

    def __init__(self, kind: Kind, n: int, seed: int):
        self.kind, at = kind, kind.layout()
        self.table = (native.Expert * n)()
        self.slots = np.zeros((n, at["SLOT"]), np.uint8)
        self.tensors = []
        for e in range(n):
            for i, (part, form, (rows, cols)) in enumerate(zip(PARTS, kind.forms, kind.shapes())):
                g = generator(1000 * seed + 10 * e + i)
                codes, scale = WEIGHTS[form](rows, cols)
                codes = codes.flatten()[torch.randperm(codes.numel(), generator=g)].reshape(codes.shape)
                own = FORMATS[form].row_scale
                shape = (rows, 1) if own else scale.shape
                step = torch.exp(torch.randn(shape, generator=g)) * 0.1 / cols**0.5
                if own:
                    scale[:, :own] = (step / 40).bfloat16().view(torch.uint8)
                else:
                    scale = step.to(scale.dtype) if form == "fp4" else (step / 16).to(scale.dtype)
                self.tensors += codes, scale
                setattr(self.table[e], part, native.matrix(codes, scale, form))
                for name, tensor in ((part.upper(), codes), (f"{part.upper()}_SCALE", scale)):
                    raw = tensor.contiguous().view(torch.uint8).numpy().ravel()
                    self.slots[e, at[name] : at[name] + raw.size] = raw


@dataclass
class Step:
    """What a layer's experts are given: rows and choices, and what they add to."""

    x: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    out: torch.Tensor

    @classmethod
    def random(cls, rows: int, dim: int, n_experts: int, top_k: int, seed: int) -> "Step":
        g = generator(seed)
        x = torch.randn(rows, dim, generator=g) * torch.exp(torch.randn(rows, dim, generator=g))
        if rows > 2:
            x[1] = 0
            x[2, 5] = float("nan")
        ids = torch.stack([torch.randperm(n_experts, generator=g)[:top_k] for _ in range(rows)])
        out = torch.randn(rows, dim, generator=g)
        return cls(x, ids, torch.rand(rows, top_k, generator=g), out)


LIMIT = 1.5


class PtxMachine:
    """Runs kernels as compiled for a GPU."""

    def __init__(self, gpu: str, asm: str = "ptx"):
        self.gpu, self.form = gpu, {"ASM": asm}

    def __call__(self, kernel, grid, arguments, **constants):
        if "ASM" in {p.name for p in kernel.params}:
            constants |= self.form
        gpu_kernels.run(gpu_kernels.program(kernel, self.gpu, **constants), grid, *arguments)


def rows_of_pairs(run, kind: Kind, memory, slots, ids, weights, quantized, limit) -> np.ndarray:
    """The rows [pairs, D] of those pairs whose expert has a slot; others are NaN. ids [rows, pairs a row]."""
    pairs, top_k = ids.numel(), ids.shape[1]
    z, scale = np.zeros((pairs, kind.inner), np.int8), np.full((pairs, kind.inner // 32), np.nan, np.float32)
    y = np.full((pairs, kind.dim), np.nan, np.float32)
    chosen = memory, slots, ids
    arguments = (*chosen, weights, *quantized, z, scale, limit)
    run(experts.gate_up, (pairs, kind.inner // 32), arguments, **kind.gate_up(top_k))
    z, scale = torch.from_numpy(z), torch.from_numpy(scale)
    run(experts.down, (pairs, kind.dim // 32), (*chosen, z, scale, y), **kind.down())
    return y


def of_slots(made: Experts, held: np.ndarray, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory with the experts of a mask in slots of a random order, and the table that says which."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.flatnonzero(held))
    slots = np.full(len(held), -1, np.int16)
    slots[order] = 1 + np.arange(len(order))
    memory = np.full((len(order) + 1, made.slots.shape[1]), 0xFF, np.uint8)
    memory[1:] = made.slots[order]
    return torch.from_numpy(memory), torch.from_numpy(slots)


def shared_rows(run, step: Step, shared: Experts, quantized) -> np.ndarray:
    n = len(step.x)
    memory, slots = of_slots(shared, np.array([True]), 0)
    ids, weights = torch.zeros(n, 1, dtype=torch.int64), torch.ones(n, 1)
    return rows_of_pairs(run, shared.kind, memory, slots, ids, weights, quantized, LIMIT)


def rows_of_all(run, step: Step, made: Experts, shared: Experts, memory, slots) -> tuple[np.ndarray, np.ndarray]:
    """`rows_of_pairs` and `shared_rows` in the same launches, as where one result is to be beside the other."""
    (rows, top_k), kind, own = step.ids.shape, made.kind, shared.kind
    at, table = torch.from_numpy(shared.slots[0]), own.layout() | own.formats()
    pairs, q = rows * top_k, native.quantize(step.x)

    def of_both(constants: dict) -> dict:
        return constants | {f"SHARED_{name}": table[name] for name in constants if name in table and name != "SLOT"}

    def room(n: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((n, width), np.int8), np.full((n, width // 32), np.nan, np.float32)

    z = *room(pairs, kind.inner), *room(rows, own.inner)
    grid, sizes = (pairs + rows, max(kind.inner, own.inner) // 32), {"SHARED_N": own.inner}
    arguments = memory, slots, step.ids, step.weights, at, *q, *z, LIMIT, pairs
    run(experts.gate_up_all, grid, arguments, **sizes, **of_both(kind.gate_up(top_k)))
    y, of_shared = (np.full((n, kind.dim), np.nan, np.float32) for n in (pairs, rows))
    arguments = memory, slots, step.ids, at, *map(torch.from_numpy, z), y, of_shared, pairs
    grid, sizes = (pairs + rows, kind.dim // 32), {"SHARED_K": own.inner}
    run(experts.down_all, grid, arguments, **sizes, **of_both(kind.down()))
    return y, of_shared


def by_the_library(step: Step, made: Experts, shared: Experts | None) -> torch.Tensor:
    out = step.out.clone()
    native.experts(step.x, step.ids, step.weights, made.table, shared and shared.table[0], LIMIT, out)
    return out


def missed_rows(step: Step, made: Experts, held: np.ndarray) -> np.ndarray:
    """Of pairs whose expert has no slot, by the library, one pair at a time; others are NaN."""
    n, top_k = step.ids.shape
    rows = torch.full((n, top_k, step.x.shape[1]), float("nan"))
    for i in range(n):
        for j in range(top_k):
            if not held[step.ids[i, j]]:
                rows[i, j] = 0
                choice = step.ids[i : i + 1, j : j + 1], step.weights[i : i + 1, j : j + 1]
                native.experts(step.x[i : i + 1], *choice, made.table, None, LIMIT, rows[i, j][None])
    return rows.numpy()


def added(run, step: Step, slots, shared, hits, misses) -> np.ndarray:
    n, dim = step.x.shape
    out = step.out.numpy().copy()
    rows = [torch.from_numpy(r) for r in (shared, hits, misses)]
    nothing = torch.zeros(4)  # it is stored
    arguments = (slots, step.ids, *rows, out, nothing, nothing)
    run(experts.add_experts, (blocks(dim, 128), n), arguments, N=dim, TOP_K=step.ids.shape[1], S=0, BLOCK=128)
    return out


def all_of_it(run, step: Step, made: Experts, shared: Experts, held: np.ndarray) -> np.ndarray:
    memory, slots = of_slots(made, held, 1)
    hits, of_shared = rows_of_all(run, step, made, shared, memory, slots)
    return added(run, step, slots, of_shared, hits, missed_rows(step, made, held))
