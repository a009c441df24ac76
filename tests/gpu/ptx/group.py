"""Blocks that go in step: their registers, and how operands are read and written."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ptx.copies import Copies
from ptx.faults import Uninitialised, Unknown
from ptx.memory import FIRST_SHARED, GlobalMemory, SharedMemory
from ptx.parse import Address, Immediate, Instruction, Operand, Program, Register, Symbol, Vector
from ptx.races import Clock
from ptx.values import JUNK, UNSIGNED, bits_of, constant, everyone, typed, width

DONE = -1


@dataclass
class Run:
    """What is of one launch."""

    grid: tuple[int, int, int]
    parameters: dict[str, np.ndarray]  # bits
    memory: GlobalMemory
    waiting: list["Group"]  # blocks that go on when others have ended


@dataclass
class Group:
    """Registers are arrays of one element per thread or of a single one, or None until something is written."""

    run: Run
    blocks: np.ndarray  # their numbers in the grid
    thread: np.ndarray  # of each thread of theirs, its number in the grid
    registers: list[np.ndarray | None]
    shared: SharedMemory
    clock: Clock
    copies: Copies
    at: int = 0  # the next instruction

    def only(self, some: np.ndarray, at: int) -> "Group":
        """The blocks of a mask, which go on at an instruction of their own."""
        each = np.repeat(some, len(self.thread) // len(some))
        registers = [r[each] if r is not None and len(r) == len(each) else r for r in self.registers]
        threads = self.thread[each]
        copies = self.copies.only(threads)
        return Group(self.run, self.blocks[some], threads, registers, self.shared, self.clock, copies, at)


Step = Callable[[Group], None]
Read = Callable[[Group], np.ndarray]
Write = Callable[[Group, np.ndarray], None]


def reader(program: Program, operand: Operand, kind: str) -> Read:
    """A function of a group that gives an operand as values of a type."""
    if isinstance(operand, Immediate):
        value = constant(operand.value, kind)
        return lambda group: value
    if isinstance(operand, Symbol):
        special = special_register(program, operand.name)
        return lambda group: typed(special(group).astype(UNSIGNED[width(kind)]), kind)
    if not isinstance(operand, Register) or width(kind) > operand.bits or (kind == "pred") != (operand.bits == 1):
        raise Unknown(f"{named(operand)} where a value of type {kind} belongs")
    index = operand.index

    def read(group: Group) -> np.ndarray:
        bits = group.registers[index]
        if bits is None:
            raise Uninitialised(f"register {operand.name} is read before it is written")
        return typed(bits, kind)

    return read


def writer(instruction: Instruction, operand: Operand, kind: str) -> Write:
    """A function that puts values of a type into a register, of threads that the guard lets through."""
    if not isinstance(operand, Register) or width(kind) > operand.bits or (kind == "pred") != (operand.bits == 1):
        raise Unknown(f"{named(operand)} for a result of type {kind}")
    index, size, guarded = operand.index, operand.bits, guard(instruction)

    def write(group: Group, value: np.ndarray) -> None:
        bits = bits_of(value, kind, size)
        allowed = guarded(group)
        if allowed is not None:
            bits = np.where(allowed, bits, before(group, operand))
        group.registers[index] = bits

    return write


def unwritten(group: Group, operand: Operand) -> bool:
    return isinstance(operand, Register) and group.registers[operand.index] is None


def before(group: Group, register: Register) -> np.ndarray:
    """What a register holds; junk where nothing was written yet."""
    bits = group.registers[register.index]
    return np.full(1, JUNK, np.uint64).astype(UNSIGNED[register.bits]) if bits is None else bits


def guard(instruction: Instruction) -> Callable[[Group], np.ndarray | None]:
    """A mask of the threads that take part; None for all."""
    register = instruction.guard
    if register is None:
        return lambda group: None

    def mask(group: Group) -> np.ndarray:
        held = group.registers[register.index]
        if held is None:
            raise Uninitialised(f"register {register.name} is read before it is written")
        return everyone(held == instruction.guard_value, len(group.thread))

    return mask


def special_register(program: Program, name: str) -> Read:
    size = program.threads
    if name == program.shared_name:
        return lambda group: np.array([FIRST_SHARED])
    known: dict[str, Read] = {
        "%tid.x": lambda group: group.thread % size,
        "%laneid": lambda group: group.thread % 32,
        "%ntid.x": lambda group: np.array([size]),
    }
    for axis, letter in enumerate("xyz"):
        known[f"%ctaid.{letter}"] = lambda group, axis=axis: program_number(group, axis, size)
        known[f"%nctaid.{letter}"] = lambda group, axis=axis: np.array([group.run.grid[axis]])
    if name not in known:
        raise Unknown(f"operand {name}")
    return known[name]


def program_number(group: Group, axis: int, threads: int) -> np.ndarray:
    grid = group.run.grid
    number = group.blocks // math.prod(grid[:axis]) % grid[axis]
    return number if len(number) == 1 else np.repeat(number, threads)


def named(operand: Operand) -> str:
    match operand:
        case Register() | Symbol():
            return operand.name
        case Immediate():
            return str(operand.value)
        case Address():
            return f"[{named(operand.base)}+{operand.offset}]"
        case Vector():
            return "{" + ", ".join(map(named, operand.items)) + "}"
