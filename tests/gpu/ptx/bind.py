"""From an instruction to what it does: a function of a group. Everything but branches and barriers."""

import re
from dataclasses import dataclass

import numpy as np

from ptx import alu, warp
from ptx.faults import Misaligned, Unknown
from ptx.group import Group, Read, Step, before, guard, named, reader, unwritten, writer
from ptx.memory import Access
from ptx.parse import Address, Immediate, Instruction, Operand, Program, Symbol, Vector
from ptx.values import UNSIGNED, bits_of, everyone, typed, width

ACCESS = re.compile(r"(ld|st)\.(global|shared|param)((?:\.[a-zA-Z][\w:]*?)*?)(?:\.v([24]))?\.([bsuf](?:8|16|32|64))$")
CACHE = re.compile(
    r"nc|ca|cg|cs|lu|wb|wt|L[12]::(?!cache_hint)\w+"
)  # how long to keep what was read: of no matter here
COPY = re.compile(r"cp\.async\.(ca|cg)\.shared\.global")
COPY_GROUPS = re.compile(r"cp\.async\.(commit_group|wait_group)")
MATRICES = re.compile(r"(ld|st)matrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared\.b16")
MMA_S8 = re.compile(r"mma\.sync\.aligned\.m16n8k32\.row\.col(\.satfinite)?\.s32\.s8\.s8\.s32")
REDUCTION = re.compile(r"redux\.sync\.(add|min|max)\.([us]32)")
SHUFFLE = re.compile(r"shfl\.sync\.(bfly|idx|up|down)\.b32")


@dataclass
class Binder:
    """Of the instructions of a program."""

    program: Program

    def bind(self, instruction: Instruction) -> Step:
        opcode = instruction.opcode
        if opcode.startswith(("ld.", "st.")):
            return self.access(instruction)
        if opcode.startswith("mov.b") and any(isinstance(o, Vector) for o in instruction.operands):
            return self.packing(instruction)
        for pattern, method in (
            (SHUFFLE, self.shuffle),
            (REDUCTION, self.reduction),
            (MATRICES, self.matrices),
            (MMA_S8, self.mma_s8),
            (COPY_GROUPS, self.copy_groups),
        ):
            if found := pattern.fullmatch(opcode):
                if instruction.guard:
                    raise Unknown(f"a guard before {opcode}, which all threads execute together")
                return method(instruction, found)
        if COPY.fullmatch(opcode):
            return self.copy(instruction)
        return self.operation(instruction)

    def read(self, operand: Operand, kind: str) -> Read:
        return reader(self.program, operand, kind)

    def operation(self, instruction: Instruction) -> Step:
        operation = alu.operation(instruction.opcode, len(instruction.operands))
        reads = [self.read(o, kind) for o, kind in zip(instruction.operands[1:], operation.operands)]
        write = writer(instruction, instruction.operands[0], operation.result)
        compute = operation.compute

        def step(group: Group) -> None:
            write(group, compute(*[read(group) for read in reads]))

        return step

    def packing(self, instruction: Instruction) -> Step:
        """mov between one register and several that hold its parts, the lowest first; _ is none. A part that was never
        written is junk: compilers fill up pairs of which they use one half."""
        result, source = expect(instruction, 2)
        whole = instruction.opcode.removeprefix("mov.")
        count = len((result if isinstance(result, Vector) else source).items)
        part = f"b{width(whole) // count}"
        shifts = [np.array([i * width(part)], UNSIGNED[width(whole)]) for i in range(count)]
        if isinstance(source, Vector):
            reads = [(item, self.read(item, part)) for item in source.items]
            write = writer(instruction, result, whole)

            def pack(group: Group) -> None:
                values = [before(group, item) if unwritten(group, item) else read(group) for item, read in reads]
                parts = [value.astype(UNSIGNED[width(whole)]) << s for value, s in zip(values, shifts)]
                write(group, np.bitwise_or.reduce(np.broadcast_arrays(*parts)))

            return pack
        read = self.read(source, whole)
        kept = [(item, s) for item, s in zip(result.items, shifts) if item != Symbol("_")]
        writes = [(writer(instruction, item, part), s) for item, s in kept]

        def unpack(group: Group) -> None:
            value = read(group)
            for write, s in writes:
                write(group, (value >> s).astype(UNSIGNED[width(part)]))

        return unpack

    # -- memory -------------------------------------------------------------------------------------------------------

    def access(self, instruction: Instruction) -> Step:
        found = ACCESS.fullmatch(instruction.opcode)
        if not found or not all(CACHE.fullmatch(m) for m in found[3].split(".")[1:]):
            raise Unknown(f"opcode {instruction.opcode}")
        operation, space, _, count, kind = found.groups()
        first, second = expect(instruction, 2)
        value, place = (first, second) if operation == "ld" else (second, first)
        items = value.items if isinstance(value, Vector) else (value,)
        if not isinstance(place, Address) or len(items) != int(count or 1):
            raise Unknown(f"{named(value)} and {named(place)} as operands of {instruction.opcode}")
        if space == "param":
            return self.parameter(instruction, place, kind)
        if operation == "ld":
            return self.load(instruction, space, place, items, kind)
        return self.store(instruction, space, place, items, kind)

    def parameter(self, instruction: Instruction, place: Address, kind: str) -> Step:
        name = place.base.name
        declared = dict(self.program.parameters).get(name)
        if declared is None or place.offset or width(declared) != width(kind):
            raise Unknown(f"parameter {named(place)} as {kind}")
        write = writer(instruction, instruction.operands[0], kind)
        return lambda group: write(group, typed(group.run.parameters[name], kind))

    def addresses(self, place: Address, space: str) -> Read:
        """int64 of each thread."""
        short = space == "shared" and (isinstance(place.base, Symbol) or place.base.bits == 32)
        read = self.read(place.base, "u32" if short else "u64")
        return lambda group: everyone(read(group).astype(np.int64) + place.offset, len(group.thread))

    def load(self, instruction: Instruction, space: str, place: Address, items: tuple[Operand, ...], kind: str) -> Step:
        address, guarded = self.addresses(place, space), guard(instruction)
        for item in items:
            writer(instruction, item, kind)  # for its complaints
        item_bytes = width(kind) // 8

        def step(group: Group) -> None:
            at, thread, mask = address(group), group.thread, guarded(group)
            if mask is not None:
                at, thread = at[mask], thread[mask]
            if len(at) == 0:
                return
            memory = group.run.memory if space == "global" else group.shared
            value = memory.load(Access(thread, at, item_bytes, len(items)), group.clock)
            for i, item in enumerate(items):
                bits = bits_of(typed(value[:, i], kind), kind, item.bits)
                if mask is not None:
                    whole = everyone(before(group, item), len(mask)).copy()
                    whole[mask] = bits
                    bits = whole
                group.registers[item.index] = bits

        return step

    def store(
        self, instruction: Instruction, space: str, place: Address, items: tuple[Operand, ...], kind: str
    ) -> Step:
        address, guarded = self.addresses(place, space), guard(instruction)
        reads = [self.read(item, f"b{width(kind)}") for item in items]
        item_bytes = width(kind) // 8

        def step(group: Group) -> None:
            at, thread, mask = address(group), group.thread, guarded(group)
            value = np.stack([everyone(read(group), len(at)) for read in reads], axis=1)
            if mask is not None:
                at, thread, value = at[mask], thread[mask], value[mask]
            if len(at) == 0:
                return
            memory = group.run.memory if space == "global" else group.shared
            memory.store(Access(thread, at, item_bytes, len(items)), value, group.clock)

        return step

    def copy(self, instruction: Instruction) -> Step:
        """cp.async: destination, source, bytes, and whether these are read (as many) or zeros (none)."""
        place, source, size, *some = instruction.operands
        sized = isinstance(size, Immediate) and size.value in (4, 8, 16)
        if not isinstance(place, Address) or not isinstance(source, Address) or not sized or some[1:]:
            raise Unknown(f"operands of {instruction.opcode}")
        to, at = self.addresses(place, "shared"), self.addresses(source, "global")
        words, guarded, read_bytes = size.value // 4, guard(instruction), self.read((*some, size)[0], "u32")

        def step(group: Group) -> None:
            n = len(group.thread)
            mask = guarded(group)
            mask = np.ones(n, bool) if mask is None else mask
            if not mask.any():
                return
            count = everyone(read_bytes(group), n)
            if not np.isin(count[mask], (0, size.value)).all():
                raise Unknown("a copy of a part of its bytes")
            loaded = mask & (count > 0)
            value = np.zeros((n, words), np.uint32)
            if loaded.any():
                value[loaded] = group.run.memory.load(
                    Access(group.thread, at(group), 4, words).only(loaded), group.clock
                )
            access = Access(group.thread, to(group), 4, words).only(mask)
            group.copies.begin(group.shared, access, value[mask], group.clock)

        return step

    def copy_groups(self, instruction: Instruction, found: re.Match[str]) -> Step:
        if found[1] == "commit_group":
            expect(instruction, 0)
            return lambda group: group.copies.commit()
        (left,) = expect(instruction, 1)
        if not isinstance(left, Immediate):
            raise Unknown(f"operands of {instruction.opcode}")
        return lambda group: group.copies.wait(group.shared, left.value, group.clock)

    # -- whole warps --------------------------------------------------------------------------------------------------

    def whole_warp(self, members: Operand) -> Step:
        """A check that a mask of lanes has them all."""
        read = self.read(members, "u32")

        def check(group: Group) -> None:
            if (read(group) != 0xFFFFFFFF).any():
                raise Unknown("what a part of a warp does together")

        return check

    def shuffle(self, instruction: Instruction, found: re.Match[str]) -> Step:
        result, source, by, clamp, members = expect(instruction, 5)
        value, amount, limits = self.read(source, "b32"), self.read(by, "s32"), self.read(clamp, "s32")
        check = self.whole_warp(members)
        first, *second = result.items if isinstance(result, Vector) else (result,)
        write = writer(instruction, first, "b32")
        tell = [writer(instruction, p, "pred") for p in second]

        def step(group: Group) -> None:
            check(group)
            n = len(group.thread)
            rows = [everyone(read(group), n).reshape(-1, 32) for read in (value, amount, limits)]
            moved, valid = warp.shuffle(found[1], *rows)
            write(group, moved.reshape(-1))
            for each in tell:
                each(group, valid.reshape(-1))

        return step

    def reduction(self, instruction: Instruction, found: re.Match[str]) -> Step:
        result, source, members = expect(instruction, 3)
        name, kind = found.groups()
        read, write = self.read(source, kind), writer(instruction, result, kind)
        check = self.whole_warp(members)
        reduce = {"add": np.add, "min": np.minimum, "max": np.maximum}[name].reduce

        def step(group: Group) -> None:
            check(group)
            rows = everyone(read(group), len(group.thread)).reshape(-1, 32)
            write(group, np.repeat(reduce(rows, axis=1, dtype=rows.dtype), 32))

        return step

    def matrices(self, instruction: Instruction, found: re.Match[str]) -> Step:
        """ldmatrix and stmatrix: 8 x 8 halves; lanes 8 i to 8 i + 7 say where the rows of matrix i are, of 16 bytes."""
        operation, number, transposed = found.groups()
        first, second = expect(instruction, 2)
        vector, place = (first, second) if operation == "ld" else (second, first)
        count = int(number)
        if not isinstance(vector, Vector) or len(vector.items) != count or not isinstance(place, Address):
            raise Unknown(f"{named(vector)} and {named(place)} as operands of {instruction.opcode}")
        address = self.addresses(place, "shared")
        reads = [self.read(item, "b32") for item in vector.items] if operation == "st" else []
        writes = [writer(instruction, item, "b32") for item in vector.items] if operation == "ld" else []

        def step(group: Group) -> None:
            thread = group.thread.reshape(-1, 1, 1, 32)
            rows = address(group).reshape(-1, 32)[:, : 8 * count].reshape(-1, count, 8)
            if (wrong := (rows % 16).any((1, 2))).any():
                raise Misaligned("a row of a matrix is at no multiple of 16", int(thread[wrong][0, 0, 0, 0]))
            at = warp.matrix_addresses(rows, bool(transposed))  # [warps, matrices, parts, 32]
            matrix = thread // 32 * count + np.arange(count).reshape(-1, 1, 1)
            threads, matrix = (np.broadcast_to(a, at.shape).reshape(-1) for a in (thread, matrix))
            access = Access(threads, at.reshape(-1), 4 // at.shape[2], 1)
            if reads:
                words = np.stack([everyone(read(group), len(group.thread)).reshape(-1, 32) for read in reads], 1)
                group.shared.store(access, warp.split(words, at.shape[2]).reshape(-1, 1), group.clock, matrix)
                return
            parts = group.shared.load(access, group.clock, matrix).reshape(at.shape)
            for write, words in zip(writes, warp.joined(parts).swapaxes(0, 1)):
                write(group, words.reshape(-1))

        return step

    def mma_s8(self, instruction: Instruction, found: re.Match[str]) -> Step:
        result, *sources = expect(instruction, 4)
        sizes = [len(o.items) if isinstance(o, Vector) else 0 for o in (result, *sources)]
        if sizes != [4, 4, 2, 4]:
            raise Unknown(f"operands of {sizes} registers for {instruction.opcode}")
        reads = [[self.read(item, kind) for item in o.items] for o, kind in zip(sources, ("b32", "b32", "s32"))]
        writes = [writer(instruction, item, "s32") for item in result.items]

        def step(group: Group) -> None:
            n = len(group.thread)
            a, b, c = (np.stack([everyone(read(group), n) for read in r], 1).reshape(n // 32, 32, -1) for r in reads)
            total = warp.mma_s8(a, b, c).reshape(n, 4)
            for i, write in enumerate(writes):
                write(group, total[:, i])

        return step


def expect(instruction: Instruction, count: int) -> tuple[Operand, ...]:
    if len(instruction.operands) != count:
        raise Unknown(f"{instruction.opcode} with {len(instruction.operands)} operands, known with {count}")
    return instruction.operands
