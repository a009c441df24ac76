"""A program as Python: one function for each stretch of instructions that are executed one behind the other. In it
registers are variables, of as many types as they are read as; where it ends they go to the group."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptx.access import cell
from ptx.action import Action, expect
from ptx.bind import bind
from ptx.faults import Divergence, Fault, Uninitialised, Unknown
from ptx.group import DONE, Group, named, special_register
from ptx.parse import Immediate, Instruction, Operand, Program, Register, Symbol
from ptx.values import DTYPES, JUNK, UNSIGNED, bits_of, constant, typed, width

BRANCHES = ("bra", "bra.uni", "ret")


@dataclass
class Stretch:
    """Instructions [first, last). `run` executes them: which stretch is next, or DONE."""

    first: int
    last: int
    run: Callable[[Group], int]


@dataclass
class Composed:
    stretches: list[Stretch]
    file: str  # that Python believes the functions to be in
    instruction_of: list[int]  # of each line
    shared_cell: int  # see access.cell
    global_cell: int

    def instruction_at(self, fault: Fault) -> int:
        """Which one it was raised in."""
        at, line = fault.__traceback__, 0
        while at:
            if at.tb_frame.f_code.co_filename == self.file:
                line = at.tb_lineno
            at = at.tb_next
        return self.instruction_of[line - 1]


def composed(program: Program, located: Callable[[Fault, Instruction], Fault]) -> Composed:
    return _Composer(program, located).all()


class _Composer:
    def __init__(self, program: Program, located: Callable[[Fault, Instruction], Fault]):
        self.program, self.located = program, located
        self.lines: list[str] = []
        self.instruction_of: list[int] = []
        self.instruction = 0
        self.names: dict[str, Any] = {
            "bits_of": bits_of,
            "typed": typed,
            "where": np.where,
            "before": before,
            "unwritten": unwritten,
            "part": part,
        }
        self.names |= {dtype.str[1:]: dtype for dtype in DTYPES.values()}

    def all(self) -> Composed:
        program = self.program
        ends = {i + 1 for i, instruction in enumerate(program.instructions) if instruction.opcode in BRANCHES}
        starts = sorted({0, len(program.instructions)} | set(program.labels.values()) | ends)
        self.number = {start: i for i, start in enumerate(starts)}
        for first, last in itertools.pairwise(starts):
            self.stretch(first, last)
        file = f"<{program.name} {id(program):#x}>"
        exec(compile("\n".join(self.lines), file, "exec"), self.names)
        stretches = [Stretch(a, b, self.names[f"from_{a}"]) for a, b in itertools.pairwise(starts)]
        cells = cell(program, "shared"), cell(program, "global")
        return Composed(stretches, file, self.instruction_of, *cells)

    def emit(self, line: str) -> None:
        self.lines.append(f"    {line}")
        self.instruction_of.append(self.instruction)

    def value(self, value: Any) -> str:
        """Its name in the functions."""
        name = f"c{len(self.names)}"
        self.names[name] = value
        return name

    def variable(self) -> str:
        self.variables += 1
        return f"v{self.variables}"

    # -- instructions -------------------------------------------------------------------------------------------------

    def stretch(self, first: int, last: int) -> None:
        self.variables = 0
        self.forms: dict[int, dict[str, str]] = {}  # of registers: variables by how they see them, the latest last
        self.changed: set[int] = set()
        self.instruction = first
        self.lines.append(f"def from_{first}(group):")
        self.instruction_of.append(first)
        self.emit("R = group.registers")
        for self.instruction in range(first, last):
            instruction = self.program.instructions[self.instruction]
            try:
                if instruction.opcode in BRANCHES:
                    self.branch(instruction)
                    return
                self.action(instruction, bind(self.program, instruction))
            except Fault as fault:
                raise self.located(fault, instruction) from None
        self.leave()
        self.emit(f"return {self.number[last]}")

    def action(self, instruction: Instruction, action: Action) -> None:
        mask = self.mask(instruction)
        given = {"group": "group", "mask": mask or "None"}
        inputs = [given[name] for name in action.takes]
        inputs += [self.read(operand, kind, action.lenient) for operand, kind in action.inputs]
        call = f"{self.value(action.compute)}({', '.join(inputs)})"
        if not action.results:
            self.emit(call)
            return
        for operand, kind in action.results:
            check_result(operand, kind)
        if len(action.results) == 1:
            self.write(*action.results[0], call, action.exact, mask)
            return
        names = [self.variable() for _ in action.results]
        self.emit(f"{', '.join(names)} = {call}")
        for (operand, kind), name in zip(action.results, names):
            self.write(operand, kind, name, action.exact, mask)

    def branch(self, instruction: Instruction) -> None:
        if instruction.opcode == "ret":
            expect(instruction, 0)
            target = DONE
        else:
            (label,) = expect(instruction, 1)
            if not isinstance(label, Symbol) or label.name not in self.program.labels:
                raise Unknown("a branch to nowhere")
            target = self.number[self.program.labels[label.name]]
        mask = self.mask(instruction)
        self.leave()
        self.emit(
            f"return part(group, {mask}, {target}, {self.number[self.instruction + 1]})" if mask else f"return {target}"
        )

    def leave(self) -> None:
        for register in sorted(self.changed):
            self.emit(f"R[{register}] = {self.forms[register]['any']}")

    # -- operands -----------------------------------------------------------------------------------------------------

    def mask(self, instruction: Instruction) -> str:
        """Of the threads that take part; nothing for all."""
        if instruction.guard is None:
            return ""
        held = self.read(instruction.guard, "pred")
        if instruction.guard_value:
            return held
        name = self.variable()
        self.emit(f"{name} = ~{held}")
        return name

    def read(self, operand: Operand, kind: str, lenient: bool = False) -> str:
        """A variable with its values of a type."""
        if isinstance(operand, Immediate):
            return self.value(constant(operand.value, kind))
        if isinstance(operand, Symbol):
            special = special_register(self.program, operand.name)
            name = self.variable()
            dtype = UNSIGNED[width(kind)]
            self.emit(f"{name} = {self.value(lambda group: typed(special(group).astype(dtype), kind))}(group)")
            return name
        if not fits(operand, kind):
            raise Unknown(f"{named(operand)} where a value of type {kind} belongs")
        if lenient and operand.index not in self.forms:
            return self.converted(self.before(operand), operand, kind)
        forms = self.loaded(operand)
        if kind not in forms:
            forms[kind] = self.converted(forms["any"], operand, kind)
        return forms[kind]

    def loaded(self, register: Register) -> dict[str, str]:
        if register.index not in self.forms:
            name = self.variable()
            self.emit(f"{name} = R[{register.index}]")
            self.emit(f"if {name} is None: unwritten({register.name!r})")
            self.forms[register.index] = {"any": name}
        return self.forms[register.index]

    def converted(self, held: str, register: Register, kind: str) -> str:
        if kind == "pred":
            return held
        name = self.variable()
        if kind != "f32x2" and width(kind) == register.bits:
            self.emit(f"{name} = {held}.view({DTYPES[kind].str[1:]})")
        else:
            self.emit(f"{name} = typed({held}.view(u{register.bits // 8}), {kind!r})")
        return name

    def before(self, register: Register) -> str:
        """A variable with the bits that it holds, junk where nothing was written yet."""
        name = self.variable()
        held = self.forms[register.index]["any"] if register.index in self.forms else f"R[{register.index}]"
        self.emit(f"{name} = before({held}, {register.bits})")
        return name

    def write(self, operand: Operand, kind: str, value: str, exact: bool, mask: str) -> None:
        name = self.variable()
        if exact and width(kind) == operand.bits:
            self.emit(f"{name} = {value}")
        else:
            self.emit(f"{name} = bits_of({value}, {kind!r}, {operand.bits})")
            kind = "pred" if operand.bits == 1 else f"b{operand.bits}"
        if mask:
            old, merged = self.before(operand), self.variable()
            seen = name if operand.bits == 1 else f"{name}.view(u{operand.bits // 8})"
            self.emit(f"{merged} = where({mask}, {seen}, {old})")
            name, kind = merged, "pred" if operand.bits == 1 else f"b{operand.bits}"
        self.forms[operand.index] = {kind: name, "any": name}
        self.changed.add(operand.index)


def fits(operand: Operand, kind: str) -> bool:
    return isinstance(operand, Register) and width(kind) <= operand.bits and (kind == "pred") == (operand.bits == 1)


def check_result(operand: Operand, kind: str) -> None:
    if not fits(operand, kind):
        raise Unknown(f"{named(operand)} for a result of type {kind}")


# -- what the functions call ------------------------------------------------------------------------------------------


def before(held: np.ndarray | None, bits: int) -> np.ndarray:
    if held is None:
        return np.full(1, JUNK, np.uint64).astype(UNSIGNED[bits])
    return held if bits == 1 else held.view(UNSIGNED[bits])


def unwritten(name: str) -> None:
    raise Uninitialised(f"register {name} is read before it is written")


def part(group: Group, mask: np.ndarray, target: int, following: int) -> int:
    """Where a group goes on: blocks go to `target` where the mask holds. Those that go different ways are in step no
    longer."""
    count = np.count_nonzero(mask)
    if count in (0, len(mask)):
        return target if count else following
    by_block = mask.reshape(len(group.blocks), -1)
    taken = by_block.all(1)
    if (taken != by_block.any(1)).any():
        block = int(np.argmax(taken != by_block.any(1)))
        odd_one = int(np.argmax(by_block[block] != by_block[block, 0]))
        raise Divergence(
            "threads of one block go different ways", int(group.thread[block * by_block.shape[1] + odd_one])
        )
    group.shared.shadow.settle()
    group.run.waiting.append(group.only(~taken, following))
    group.run.waiting.append(group.only(taken, target))
    return DONE
