"""Instructions that the threads of a warp or a block execute together -> actions."""

import re

import numpy as np

from ptx import warp
from ptx.access import addresses, base
from ptx.action import Action, expect, no_guard
from ptx.faults import Misaligned, Unknown
from ptx.group import Group, named
from ptx.memory import Access
from ptx.parse import Immediate, Instruction, Operand, Vector
from ptx.values import everyone

MATRICES = re.compile(r"(ld|st)matrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared\.b16")
MMA_S8 = re.compile(r"mma\.sync\.aligned\.m16n8k32\.row\.col(\.satfinite)?\.s32\.s8\.s8\.s32")
REDUCTION = re.compile(r"redux\.sync\.(add|min|max)\.([us]32)")
SHUFFLE = re.compile(r"shfl\.sync\.(bfly|idx|up|down)\.b32")


def together(instruction: Instruction) -> Action | None:
    """None for other instructions."""
    if instruction.opcode in ("bar.sync", "bar.warp.sync"):
        if instruction.guard:
            raise Unknown("a barrier of a part of a block")
        return _barrier(instruction)
    for pattern, make in ((SHUFFLE, _shuffle), (REDUCTION, _reduction), (MATRICES, _matrices), (MMA_S8, _mma_s8)):
        if found := pattern.fullmatch(instruction.opcode):
            no_guard(instruction)
            return make(instruction, found)
    return None


def _barrier(instruction: Instruction) -> Action:
    (operand,) = expect(instruction, 1)
    if instruction.opcode == "bar.warp.sync":

        def of_warp(group: Group, members: np.ndarray) -> None:
            check_whole(members)
            group.clock = group.clock.warp_barrier()

        return Action(of_warp, [(operand, "u32")], [], ("group",))
    if operand != Immediate(0):
        raise Unknown("a barrier of a part of a block")

    def of_block(group: Group) -> None:
        group.clock = group.clock.block_barrier()

    return Action(of_block, takes=("group",))


def check_whole(members: np.ndarray) -> None:
    """That a mask of lanes has them all."""
    if (members != 0xFFFFFFFF).any():
        raise Unknown("what a part of a warp does together")


def _shuffle(instruction: Instruction, found: re.Match[str]) -> Action:
    result, source, by, clamp, members = expect(instruction, 5)
    items = result.items if isinstance(result, Vector) else (result,)
    if len(items) > 2:
        raise Unknown(f"{named(result)} as the result of {instruction.opcode}")

    def shuffle(group: Group, value: np.ndarray, by: np.ndarray, clamp: np.ndarray, members: np.ndarray):
        check_whole(members)
        n = len(group.thread)
        if len(by) == len(clamp) == 1:
            lanes, inside = warp.sources(found[1], int(by[0]), int(clamp[0]))
            moved = value if len(value) == 1 else value.reshape(-1, 32)[:, lanes].reshape(-1)
            valid = inside
        else:
            rows = [everyone(each, n).reshape(-1, 32) for each in (value, by, clamp)]
            moved, valid = (each.reshape(-1) for each in warp.shuffle(found[1], *rows))
        return moved if len(items) == 1 else [moved, np.resize(valid, n)]

    inputs = [(source, "b32"), (by, "s32"), (clamp, "s32"), (members, "u32")]
    return Action(shuffle, inputs, list(zip(items, ("b32", "pred"))), ("group",), exact=True)


def _reduction(instruction: Instruction, found: re.Match[str]) -> Action:
    result, source, members = expect(instruction, 3)
    name, kind = found.groups()
    reduce = {"add": np.add, "min": np.minimum, "max": np.maximum}[name].reduce

    def reduction(group: Group, value: np.ndarray, members: np.ndarray) -> np.ndarray:
        check_whole(members)
        rows = everyone(value, len(group.thread)).reshape(-1, 32)
        return np.repeat(reduce(rows, axis=1, dtype=rows.dtype), 32)

    return Action(reduction, [(source, kind), (members, "u32")], [(result, kind)], ("group",), exact=True)


def _matrices(instruction: Instruction, found: re.Match[str]) -> Action:
    """ldmatrix and stmatrix: 8 x 8 halves; lanes 8 i to 8 i + 7 say where the rows of matrix i are, of 16 bytes."""
    operation, number, transposed = found.groups()
    first, second = expect(instruction, 2)
    vector, place = (first, second) if operation == "ld" else (second, first)
    count = int(number)
    if not isinstance(vector, Vector) or len(vector.items) != count:
        raise Unknown(f"{named(vector)} and {named(place)} as operands of {instruction.opcode}")
    items: list[tuple[Operand, str]] = [(item, "b32") for item in vector.items]

    def accesses(group: Group, at: np.ndarray) -> tuple[Access, np.ndarray, tuple[int, ...]]:
        thread = group.thread.reshape(-1, 1, 1, 32)
        rows = everyone(addresses(at, place), len(group.thread)).reshape(-1, 32)
        rows = rows[:, : 8 * count].reshape(-1, count, 8)
        if (wrong := (rows % 16).any((1, 2))).any():
            raise Misaligned("a row of a matrix is at no multiple of 16", int(thread[wrong][0, 0, 0, 0]))
        at = warp.matrix_addresses(rows, bool(transposed))  # [warps, matrices, parts, 32]
        matrix = thread // 32 * count + np.arange(count).reshape(-1, 1, 1)
        threads, matrix = (np.broadcast_to(a, at.shape).reshape(-1) for a in (thread, matrix))
        return Access(threads, at.reshape(-1), 4 // at.shape[2], 1), matrix, at.shape

    def load(group: Group, at: np.ndarray):
        access, matrix, shape = accesses(group, at)
        parts = group.shared.load(access, group.clock, matrix).reshape(shape)
        words = [w.reshape(-1) for w in warp.joined(parts).swapaxes(0, 1)]
        return words if count > 1 else words[0]

    def store(group: Group, at: np.ndarray, *values: np.ndarray) -> None:
        access, matrix, shape = accesses(group, at)
        words = np.stack([everyone(value, len(group.thread)).reshape(-1, 32) for value in values], 1)
        group.shared.store(access, warp.split(words, shape[2]).reshape(-1, 1), group.clock, matrix)

    if operation == "ld":
        return Action(load, [base(place, "shared")], items, ("group",))
    return Action(store, [base(place, "shared"), *items], [], ("group",))


def _mma_s8(instruction: Instruction, found: re.Match[str]) -> Action:
    operands = expect(instruction, 4)
    sizes = [len(o.items) if isinstance(o, Vector) else 0 for o in operands]
    if sizes != [4, 4, 2, 4]:
        raise Unknown(f"operands of {sizes} registers for {instruction.opcode}")
    result, *sources = (o.items for o in operands)
    inputs = [(item, kind) for items, kind in zip(sources, ("b32", "b32", "s32")) for item in items]

    def multiply(group: Group, *values: np.ndarray) -> list[np.ndarray]:
        n = len(group.thread)
        each = [everyone(value, n) for value in values]
        a, b, c = (np.stack(part, 1).reshape(n // 32, 32, -1) for part in (each[:4], each[4:6], each[6:]))
        return list(warp.mma_s8(a, b, c).reshape(n, 4).T.copy())

    return Action(multiply, inputs, [(item, "s32") for item in result], ("group",), exact=True)
