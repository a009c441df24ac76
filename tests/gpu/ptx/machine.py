"""Execution: the blocks of a launch, branches and barriers."""

import struct
from collections.abc import Sequence

import numpy as np

from ptx.bind import Binder, expect
from ptx.copies import Copies
from ptx.faults import Divergence, Fault, Unknown
from ptx.group import DONE, Group, Step, guard
from ptx.memory import Counters, DeviceMemory, SharedMemory
from ptx.parse import Immediate, Instruction, Program, Symbol
from ptx.races import Clock
from ptx.values import UNSIGNED

AT_ONCE = 16384  # threads that go in step: more save nothing, and their registers stay in the processor's cache
PACKED = {"u16": "<H", "u32": "<I", "u64": "<Q", "s32": "<i", "s64": "<q", "f32": "<f"}


def launch(program: Program, grid: Sequence[int], arguments: Sequence[int | float | np.ndarray]) -> Counters:
    """Run the kernel. Arrays become buffers: those that are writeable hold afterwards what it left there, a store to
    any other is a fault. Faults say where they happened; arrays are then as they were.

    ValueError: arguments that do not fit the parameters."""
    run = _Launch(program, (*grid, 1, 1)[:3], arguments)
    with np.errstate(all="ignore"):
        run.all_blocks()
    return run.counters


class _Launch:
    def __init__(self, program: Program, grid: tuple[int, int, int], arguments: Sequence[int | float | np.ndarray]):
        if len(arguments) != len(program.parameters):
            raise ValueError(f"{len(arguments)} arguments for {len(program.parameters)} parameters")
        self.program, self.grid = program, grid
        self.counters = Counters()
        self.memory = DeviceMemory(self.counters, program.threads)
        given = {name: self.argument(name, kind, a) for (name, kind), a in zip(program.parameters, arguments)}
        self.binder = Binder(program, grid, given, self.memory)
        self.waiting: list[Group] = []
        self.executed = [0] * len(program.instructions)
        self.steps = [self.bind(i) for i in program.instructions]

    def argument(self, name: str, kind: str, given: int | float | np.ndarray) -> np.ndarray:
        """Its bits."""
        value = self.memory.place(name, given) if isinstance(given, np.ndarray) else given
        if kind not in PACKED:
            raise Unknown(f"a parameter of type {kind}")
        try:
            packed = struct.pack(PACKED[kind], value)
        except struct.error as problem:
            raise ValueError(f"{value} for {name} of type {kind}: {problem}") from None
        return np.frombuffer(packed, UNSIGNED[8 * len(packed)])

    def all_blocks(self) -> None:
        total, size = int(np.prod(self.grid)), self.program.threads
        some = max(1, AT_ONCE // size)
        for first in range(0, total, some):
            blocks = np.arange(first, min(total, first + some))
            threads = np.arange(first * size, (first + len(blocks)) * size)
            shared = SharedMemory(self.counters, self.program.shared_bytes, first, len(blocks), size)
            self.waiting.append(Group(blocks, threads, [None] * self.program.registers, shared, Clock(), Copies()))
            while self.waiting:
                self.go(self.waiting.pop())
        for instruction, count in zip(self.program.instructions, self.executed):
            self.counters.instructions[instruction.opcode] += count
        for buffer in self.memory.buffers:
            buffer.give_back()

    def go(self, group: Group) -> None:
        """To the end of the kernel, or to where its blocks part."""
        while group.at != DONE:
            at = group.at
            if at == len(self.steps):
                raise Unknown(f"{self.program.name}: the code ends without ret")
            self.executed[at] += len(group.thread) // 32
            group.at += 1
            try:
                self.steps[at](group)
            except Fault as fault:
                raise self.located(fault, self.program.instructions[at]) from None

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
            raise self.located(fault, instruction) from None

    def located(self, fault: Fault, instruction: Instruction) -> Fault:
        where = f"{self.program.name}, line {instruction.line}"
        if instruction.source:
            where += f" ({instruction.source})"
        if fault.thread is not None:
            block, thread = divmod(fault.thread, self.program.threads)
            where += f", block {block}, thread {thread}"
        return type(fault)(f"{where}: {instruction.text}: {fault}", fault.thread)

    # -- control ------------------------------------------------------------------------------------------------------

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
                self.waiting.append(group.only(~taken, group.at))
                self.waiting.append(group.only(taken, target))
                group.at = DONE

        return step

    def block_barrier(self, instruction: Instruction) -> Step:
        (number,) = expect(instruction, 1)
        if number != Immediate(0) or instruction.guard:
            raise Unknown("a barrier of a part of a block")
        return lambda group: group.clock.block_barrier()

    def warp_barrier(self, instruction: Instruction) -> Step:
        (members,) = expect(instruction, 1)
        check = self.binder.whole_warp(members)
        if instruction.guard:
            raise Unknown("a barrier of a part of a warp")

        def step(group: Group) -> None:
            check(group)
            group.clock.warp_barrier()

        return step
