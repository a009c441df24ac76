"""Execution: the blocks of a launch, as many in step as go the same way."""

import math
import struct
from collections.abc import Sequence

import numpy as np

from ptx.buffers import DeviceMemory
from ptx.compose import composed
from ptx.copies import Copies
from ptx.device import GlobalMemory
from ptx.faults import Fault, Unknown
from ptx.group import DONE, Group, Run
from ptx.memory import Counters, SharedMemory
from ptx.parse import Instruction, Program
from ptx.races import Clock, Sharing
from ptx.values import UNSIGNED

AT_ONCE = 16384  # threads that go in step: more save nothing, and their registers stay in the processor's cache
PACKED = {"u16": "<H", "u32": "<I", "u64": "<Q", "s32": "<i", "s64": "<q", "f32": "<f"}


def launch(
    program: Program,
    grid: Sequence[int],
    arguments: Sequence[int | float | np.ndarray],
    memory: DeviceMemory | None = None,
) -> Counters:
    """Run the kernel. Arrays become buffers: those that are writeable hold afterwards what it left there, a store to
    any other is a fault. `memory` is what there is besides. Faults say where they happened; arrays are then as they
    were.

    ValueError: arguments that do not fit the parameters."""
    memory, numbers, counters = memory or DeviceMemory(), [], Counters()
    placed = []
    try:
        for (name, _), given in zip(program.parameters, arguments):
            if isinstance(given, np.ndarray):
                if not given.flags.c_contiguous:
                    raise ValueError(f"{name} is not contiguous")
                buffer = memory.place(name, given.nbytes)
                buffer.bytes[:] = given.reshape(-1).view(np.uint8)
                buffer.frozen = not given.flags.writeable
                placed.append((buffer, given))
            numbers.append(placed[-1][0].address if isinstance(given, np.ndarray) else given)
        numbers += arguments[len(numbers) :]
        launch_in(memory, program, grid, numbers, counters)
        for buffer, array in placed:
            if not buffer.frozen:
                array.reshape(-1).view(np.uint8)[:] = buffer.bytes
    finally:
        for buffer, _ in placed:
            memory.remove(buffer)
    return counters


def launch_in(
    memory: DeviceMemory,
    program: Program,
    grid: Sequence[int],
    arguments: Sequence[int | float],
    counters: Counters | None = None,
) -> None:
    """Run the kernel over memory that stays; where `counters` are given they count. Faults and errors as of launch; the
    memory is then as the kernel left it."""
    if len(arguments) != len(program.parameters):
        raise ValueError(f"{len(arguments)} arguments for {len(program.parameters)} parameters")
    _Launch(memory, program, (*grid, 1, 1)[:3], arguments, counters).all_blocks()


class _Launch:
    def __init__(
        self,
        memory: DeviceMemory,
        program: Program,
        grid: tuple[int, int, int],
        arguments: Sequence[int | float],
        counters: Counters | None,
    ):
        self.program, self.counters = program, counters
        if program.composed is None:
            program.composed = composed(program, self.located)
        self.stretches = program.composed.stretches
        self.executed = [0] * len(self.stretches)
        self.total = math.prod(grid)
        given = {name: bits(name, kind, a) for (name, kind), a in zip(program.parameters, arguments)}
        sharing = Sharing(program.threads, self.total == 1, program.composed.global_cell)
        self.run = Run(grid, given, GlobalMemory(memory, counters, sharing), [])
        self.sharing = Sharing(program.threads, True, program.composed.shared_cell)

    def all_blocks(self) -> None:
        size, waiting = self.program.threads, self.run.waiting
        some = max(1, AT_ONCE // size)
        with np.errstate(all="ignore"):
            for first in range(0, self.total, some):
                blocks = np.arange(first, min(self.total, first + some))
                threads = np.arange(first * size, (first + len(blocks)) * size)
                shared = SharedMemory(self.counters, self.program.shared_bytes, first, len(blocks), self.sharing)
                registers = [None] * self.program.registers
                waiting.append(Group(self.run, blocks, threads, registers, shared, Clock(), Copies()))
                while waiting:
                    self.go(waiting.pop())
        self.run.memory.end()
        if self.counters:
            for stretch, count in zip(self.stretches, self.executed):
                for instruction in self.program.instructions[stretch.first : stretch.last]:
                    self.counters.instructions[instruction.opcode] += count

    def go(self, group: Group) -> None:
        """To the end of the kernel, or to where its blocks part."""
        stretches, executed, warps = self.stretches, self.executed, len(group.thread) // 32
        at = group.at
        try:
            while at != DONE:
                if at == len(stretches):
                    raise Unknown(f"{self.program.name}: the code ends without ret")
                executed[at] += warps
                at = stretches[at].run(group)
        except Fault as fault:
            if at == len(stretches):
                raise
            instruction = self.program.instructions[self.program.composed.instruction_at(fault)]
            raise self.located(fault, instruction) from None

    def located(self, fault: Fault, instruction: Instruction) -> Fault:
        where = f"{self.program.name}, line {instruction.line}"
        if instruction.source:
            where += f" ({instruction.source})"
        if fault.thread is not None:
            block, thread = divmod(fault.thread, self.program.threads)
            where += f", block {block}, thread {thread}"
        return type(fault)(f"{where}: {instruction.text}: {fault}", fault.thread)


def bits(name: str, kind: str, value: int | float) -> np.ndarray:
    """Of an argument for a parameter."""
    if kind not in PACKED:
        raise Unknown(f"a parameter of type {kind}")
    try:
        packed = struct.pack(PACKED[kind], value)
    except struct.error as problem:
        raise ValueError(f"{value} for {name} of type {kind}: {problem}") from None
    return np.frombuffer(packed, UNSIGNED[8 * len(packed)])
