"""What an instruction does, as a function of arrays."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ptx.faults import Unknown
from ptx.parse import Instruction, Operand


@dataclass
class Action:
    """compute(*inputs) -> result; a list where there are several, nothing where there is none. Inputs are arrays of one
    element per thread, or of a single one that they share; so are results. `takes`: what compute is given in front of
    the inputs, "group" and "mask": of the threads that the guard lets through, None where there is no guard. Results of
    the others are of no matter."""

    compute: Callable[..., Any]
    inputs: list[tuple[Operand, str]] = field(default_factory=list)  # and as values of which type
    results: list[tuple[Operand, str]] = field(default_factory=list)
    takes: tuple[str, ...] = ()
    exact: bool = False  # results are numpy arrays of their types and need no conversion
    lenient: bool = False  # inputs that were never written are junk, not a fault


def expect(instruction: Instruction, count: int) -> tuple[Operand, ...]:
    if len(instruction.operands) != count:
        raise Unknown(f"{instruction.opcode} with {len(instruction.operands)} operands, known with {count}")
    return instruction.operands


def no_guard(instruction: Instruction) -> None:
    if instruction.guard:
        raise Unknown(f"a guard before {instruction.opcode}, which all threads execute together")
