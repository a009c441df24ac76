"""Blocks that go in step: what they have, and what is the same for all threads of a launch or of a block."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ptx.copies import Copies
from ptx.device import GlobalMemory
from ptx.faults import Unknown
from ptx.memory import FIRST_SHARED, SharedMemory
from ptx.parse import Address, Immediate, Operand, Program, Register, Symbol, Vector
from ptx.races import Clock

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
    """Registers are arrays of one element per thread or of a single one, or None until something is written; of any
    type as wide as the register."""

    run: Run
    blocks: np.ndarray  # their numbers in the grid
    thread: np.ndarray  # of each thread of theirs, its number in the grid
    registers: list[np.ndarray | None]
    shared: SharedMemory
    clock: Clock
    copies: Copies
    at: int = 0  # the next basic block of the program

    def only(self, some: np.ndarray, at: int) -> "Group":
        """The blocks of a mask, which go on elsewhere."""
        each = np.repeat(some, len(self.thread) // len(some))
        registers = [r[each] if r is not None and len(r) == len(each) else r for r in self.registers]
        threads = self.thread[each]
        copies = self.copies.only(threads)
        return Group(self.run, self.blocks[some], threads, registers, self.shared, self.clock, copies, at)


def special_register(program: Program, name: str) -> Callable[[Group], np.ndarray]:
    size = program.threads
    if name == program.shared_name:
        return lambda group: np.array([FIRST_SHARED])
    known: dict[str, Callable[[Group], np.ndarray]] = {
        "%tid.x": lambda group: group.thread % size,
        "%laneid": lambda group: group.thread % 32,
        "%ntid.x": lambda group: np.array([size]),
        "%globaltimer": lambda group: np.array([time.monotonic_ns()]),
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
