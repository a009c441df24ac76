"""Execution: the blocks of a launch, branches and barriers."""

import struct
from collections.abc import Sequence

import numpy as np

from ptx.bind import Binder, expect
from ptx.buffers import DeviceMemory
from ptx.copies import Copies
from ptx.faults import Divergence, Fault, Unknown
from ptx.group import DONE, Group, Run, Step, guard
from ptx.memory import Counters, GlobalMemory, SharedMemory
from ptx.parse import Immediate, Instruction, Program, Symbol
from ptx.races import Clock
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
    memory = memory or DeviceMemory()
    if len(arguments) != len(program.parameters):
        raise ValueError(f"{len(arguments)} arguments for {len(program.parameters)} parameters")
    placed, numbers = [], []
    try:
        for (name, _), given in zip(program.parameters, arguments):
            if isinstance(given, np.ndarray):
                if not given.flags.c_contiguous:
                    raise ValueError(f"{name} is not contiguous")
                buffer = memory.place(name, given.nbytes)
                placed.append((buffer, given))
                buffer.bytes[:] = given.reshape(-1).view(np.uint8)
                buffer.frozen = not given.flags.writeable
            numbers.append(buffer.address if isinstance(given, np.ndarray) else given)
        counters = _Launch(program, (*grid, 1, 1)[:3], numbers, memory).all_blocks()
        for buffer, array in placed:
            if not buffer.frozen:
                array.reshape(-1).view(np.uint8)[:] = buffer.bytes
    finally:
        for buffer, _ in placed:
            memory.remove(buffer)
    return counters


class _Launch:
    def __init__(
        self, program: Program, grid: tuple[int, int, int], arguments: Sequence[int | float], memory: DeviceMemory
    ):
        program.steps = program.steps or _Steps(program).all()
        self.program = program
        self.counters = Counters()
        given = {name: bits(name, kind, a) for (name, kind), a in zip(program.parameters, arguments)}
        self.run = Run(grid, given, GlobalMemory(memory, self.counters, program.threads), [])
        self.executed = [0] * len(program.steps)

    def all_blocks(self) -> Counters:
        total, size = int(np.prod(self.run.grid)), self.program.threads
        some = max(1, AT_ONCE // size)
        with np.errstate(all="ignore"):
            for first in range(0, total, some):
                blocks = np.arange(first, min(total, first + some))
                threads = np.arange(first * size, (first + len(blocks)) * size)
                shared = SharedMemory(self.counters, self.program.shared_bytes, first, len(blocks), size)
                registers = [None] * self.program.registers
                self.run.waiting.append(Group(self.run, blocks, threads, registers, shared, Clock(), Copies()))
                while self.run.waiting:
                    self.go(self.run.waiting.pop())
        for instruction, count in zip(self.program.instructions, self.executed):
            self.counters.instructions[instruction.opcode] += count
        return self.counters

    def go(self, group: Group) -> None:
        """To the end of the kernel, or to where its blocks part."""
        steps, executed, warps = self.program.steps, self.executed, len(group.thread) // 32
        while group.at != DONE:
            at = group.at
            if at == len(steps):
                raise Unknown(f"{self.program.name}: the code ends without ret")
            executed[at] += warps
            group.at = at + 1
            try:
                steps[at](group)
            except Fault as fault:
                raise located(self.program, fault, self.program.instructions[at]) from None


def bits(name: str, kind: str, value: int | float) -> np.ndarray:
    """Of an argument for a parameter."""
    if kind not in PACKED:
        raise Unknown(f"a parameter of type {kind}")
    try:
        packed = struct.pack(PACKED[kind], value)
    except struct.error as problem:
        raise ValueError(f"{value} for {name} of type {kind}: {problem}") from None
    return np.frombuffer(packed, UNSIGNED[8 * len(packed)])


def located(program: Program, fault: Fault, instruction: Instruction) -> Fault:
    where = f"{program.name}, line {instruction.line}"
    if instruction.source:
        where += f" ({instruction.source})"
    if fault.thread is not None:
        block, thread = divmod(fault.thread, program.threads)
        where += f", block {block}, thread {thread}"
    return type(fault)(f"{where}: {instruction.text}: {fault}", fault.thread)


class _Steps:
    """What the instructions of a program do, the same in every launch of it."""

    def __init__(self, program: Program):
        self.program, self.binder = program, Binder(program)

    def all(self) -> list[Step]:
        return [self.bind(i) for i in self.program.instructions]

    def bind(self, instruction: Instruction) -> Step:
        control = {
            "bra": self.branch,
            "bra.uni": self.branch,
            "ret": self.end,
            "bar.sync": self.block_barrier,
            "bar.warp.sync": self.warp_barrier,
        }
        try:
            return control.get(instruction.opcode, self.binder.bind)(instruction)
        except Fault as fault:
            raise located(self.program, fault, instruction) from None

    def branch(self, instruction: Instruction) -> Step:
        (label,) = expect(instruction, 1)
        if not isinstance(label, Symbol) or label.name not in self.program.labels:
            raise Unknown("a branch to nowhere")
        return self.go_on_at(instruction, self.program.labels[label.name])

    def end(self, instruction: Instruction) -> Step:
        expect(instruction, 0)
        return self.go_on_at(instruction, DONE)

    def go_on_at(self, instruction: Instruction, target: int) -> Step:
        """Where the guard holds for a whole block. Blocks that go different ways are in step no longer."""
        guarded = guard(instruction)

        def step(group: Group) -> None:
            mask = guarded(group)
            if mask is None:
                group.at = target
                return
            by_block = mask.reshape(len(group.blocks), -1)
            taken = by_block.all(1)
            if (taken != by_block.any(1)).any():
                block = int(np.argmax(taken != by_block.any(1)))
                odd_one = int(np.argmax(by_block[block] != by_block[block, 0]))
                thread = int(group.thread[block * self.program.threads + odd_one])
                raise Divergence("threads of one block go different ways", thread)
            if taken.all():
                group.at = target
            elif taken.any():
                group.run.waiting.append(group.only(~taken, group.at))
                group.run.waiting.append(group.only(taken, target))
                group.at = DONE

        return step

    def block_barrier(self, instruction: Instruction) -> Step:
        (number,) = expect(instruction, 1)
        if number != Immediate(0) or instruction.guard:
            raise Unknown("a barrier of a part of a block")

        def step(group: Group) -> None:
            group.clock = group.clock.block_barrier()

        return step

    def warp_barrier(self, instruction: Instruction) -> Step:
        (members,) = expect(instruction, 1)
        check = self.binder.whole_warp(members)
        if instruction.guard:
            raise Unknown("a barrier of a part of a warp")

        def step(group: Group) -> None:
            check(group)
            group.clock = group.clock.warp_barrier()

        return step
