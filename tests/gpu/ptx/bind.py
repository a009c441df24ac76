"""From an instruction to what it does. Everything but branches."""

import functools

import numpy as np

from ptx import alu
from ptx.access import access
from ptx.action import Action, expect
from ptx.parse import Instruction, Program, Symbol, Vector
from ptx.together import together
from ptx.values import DTYPES, UNSIGNED, width


def bind(program: Program, instruction: Instruction) -> Action:
    """Unknown if there is no telling."""
    if instruction.opcode.startswith("mov.b") and any(isinstance(o, Vector) for o in instruction.operands):
        return packing(instruction)
    return access(program, instruction) or together(instruction) or operation(instruction)


def operation(instruction: Instruction) -> Action:
    found = alu.operation(instruction.opcode, len(instruction.operands))
    result, *sources = instruction.operands
    return Action(found.compute, list(zip(sources, found.operands)), [(result, found.result)], exact=is_exact(found))


@functools.cache
def is_exact(operation: alu.Operation) -> bool:
    """Whether what it computes is of its type already, or has to be made so."""
    if "f32x2" in (operation.result, *operation.operands):
        return False
    ones = [np.ones(2, DTYPES[kind]) for kind in operation.operands]
    return operation.compute(*ones).dtype == DTYPES[operation.result]


def packing(instruction: Instruction) -> Action:
    """mov between one register and several that hold its parts, the lowest first; _ is none. A part that was never
    written is junk: compilers fill up pairs of which they use one half."""
    result, source = expect(instruction, 2)
    whole = instruction.opcode.removeprefix("mov.")
    count = len((result if isinstance(result, Vector) else source).items)
    part = f"b{width(whole) // count}"
    dtype = UNSIGNED[width(whole)]
    shifts = [np.array([i * width(part)], dtype) for i in range(count)]
    if isinstance(source, Vector):

        def pack(*parts: np.ndarray) -> np.ndarray:
            total = parts[0].astype(dtype)
            for value, by in zip(parts[1:], shifts[1:]):
                total = total | value.astype(dtype) << by
            return total

        inputs = [(item, part) for item in source.items]
        return Action(pack, inputs, [(result, whole)], exact=True, lenient=True)
    kept = [(item, by) for item, by in zip(result.items, shifts) if item != Symbol("_")]

    def unpack(value: np.ndarray):
        parts = [(value >> by).astype(UNSIGNED[width(part)]) for _, by in kept]
        return parts if len(parts) > 1 else parts[0]

    return Action(unpack, [(source, whole)], [(item, part) for item, _ in kept], exact=True)
