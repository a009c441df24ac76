"""Text of a PTX module with one kernel -> Program: a flat list of instructions."""

import re
from dataclasses import dataclass, field
from typing import Any

from ptx.faults import Unknown


@dataclass(frozen=True)
class Register:
    index: int
    bits: int  # 1 for predicates, 16, 32, 64
    name: str


@dataclass(frozen=True)
class Immediate:
    value: int  # of an integer; of a float its bits


@dataclass(frozen=True)
class Symbol:
    """A special register (%tid.x), a parameter, a label, or the name of shared memory."""

    name: str


@dataclass(frozen=True)
class Address:
    base: "Register | Symbol"
    offset: int


@dataclass(frozen=True)
class Vector:
    """{a, b, ...}; also the two results of `d|p`."""

    items: "tuple[Operand, ...]"


Operand = Register | Immediate | Symbol | Address | Vector


@dataclass(frozen=True)
class Instruction:
    opcode: str
    operands: tuple[Operand, ...]
    guard: Register | None  # threads where this predicate is not `guard_value` leave the instruction out
    guard_value: bool
    text: str
    line: int  # of the PTX
    source: str  # file:line of what it was compiled from, as far as the PTX says


@dataclass
class Program:
    name: str
    parameters: list[tuple[str, str]]  # name, type
    threads: int  # of a block
    shared_bytes: int
    shared_name: str = ""
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # index of the instruction behind it
    registers: int = 0
    composed: Any = field(default=None, repr=False)  # what its instructions do (compose.Composed), from a launch on


BITS = {"pred": 1, "b16": 16, "b32": 32, "b64": 64, "f32": 32}
ENTRY = re.compile(r"\.visible\s+\.entry\s+(\w+)\s*\((.*?)\)\s*((?:\.\w+[ \t]+[\d, ]+\s*)*)\{", re.S)
PARAMETER = re.compile(r"\.param\s+\.(\w+)(?:\s+\.ptr\s+\.global\s+\.align\s+\d+)?\s+(\w+)$")
STATEMENT = re.compile(
    r"""\s*(?:
      (?P<open>\{) | (?P<close>\}) | (?P<label>[$\w]+): |
      (?P<location>\.loc\s[^\n]*) | (?P<pragma>\.pragma[^;]*;) |
      \.reg\s+\.(?P<kind>\w+)\s+(?P<names>[^;]*); |
      (?:@(?P<negated>!?)(?P<guard>[%\w]+)\s+)? (?P<opcode>[a-z][\w.:]*) (?P<operands>[^;]*);
    )""",
    re.X,
)
OPERAND = re.compile(r"\s*(\{[^}]*\}|\[[^\]]*\]|[^,\s]+)\s*(,|$)")


def load(text: str, shared_bytes: int = 0) -> Program:
    """`shared_bytes`: of a block, which a module that declares them `extern` leaves open."""
    files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"(?:[^"]*/)?([^"]*)"', text, re.M))
    code = re.sub(r"//[^\n]*", "", text)
    code = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), code, flags=re.S)
    heads = list(ENTRY.finditer(code))
    if len(heads) != 1 or ".func" in code:
        raise Unknown("a module that is not one kernel")
    head = heads[0]
    shared = re.findall(r"\.shared[^;]*;", code[: head.start()])
    symbol = re.fullmatch(r"\.shared\s+\.align\s+\d+\s+\.b8\s+(\w+)\[\];", shared[0]) if shared else None
    if len(shared) != bool(symbol):
        raise Unknown(f"shared memory {shared}")
    threads = re.search(r"\.reqntid\s+(\d+)(?:\s*,\s*1)*\s*$", head[3].strip())
    if not threads or int(threads[1]) % 32:
        raise Unknown(f"a kernel with blocks of {head[3].strip() or 'any size'}")
    parameters = [_parameter(p) for p in head[2].split(",")]
    program = Program(head[1], parameters, int(threads[1]), shared_bytes, symbol[1] if symbol else "")
    _Body(program, files).read(code, head.end())
    return program


def _parameter(text: str) -> tuple[str, str]:
    found = PARAMETER.match(text.strip())
    if not found:
        raise Unknown(f"parameter {text.strip()}")
    return found[2], found[1]


class _Body:
    """Names are looked up from the innermost scope outwards: inline PTX brings registers of its own."""

    def __init__(self, program: Program, files: dict[str, str]):
        self.program, self.files = program, files
        self.scopes: list[dict[str, Register]] = [{}]
        self.source = ""

    def read(self, code: str, at: int) -> None:
        line, counted = code.count("\n", 0, at) + 1, at
        while self.scopes:
            found = STATEMENT.match(code, at)
            if not found:
                raise Unknown(f"line {line}: {code[at:].strip().splitlines()[0]}")
            begin = next(found.start(g) for g in ("guard", "opcode", *found.groupdict()) if found[g] is not None)
            line, counted = line + code.count("\n", counted, begin), begin
            self.statement(found, line)
            at = found.end()

    def statement(self, found: re.Match[str], line: int) -> None:
        if found["open"]:
            self.scopes.append({})
        elif found["close"]:
            self.scopes.pop()
        elif found["label"]:
            self.program.labels[found["label"]] = len(self.program.instructions)
        elif found["location"]:
            _, file, number, *_ = found["location"].split()
            self.source = f"{self.files.get(file, '?')}:{number}"
        elif found["kind"]:
            self.declare(found["kind"], found["names"])
        elif found["opcode"]:
            self.instruction(found, line)

    def declare(self, kind: str, names: str) -> None:
        if kind not in BITS:
            raise Unknown(f"registers of type {kind}")
        for name in names.split(","):
            many = re.fullmatch(r"\s*(%\w+)<(\d+)>\s*", name)
            for each in [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name.strip()]:
                self.scopes[-1][each] = Register(self.program.registers, BITS[kind], each)
                self.program.registers += 1

    def instruction(self, found: re.Match[str], line: int) -> None:
        text = " ".join(found[0].split()).rstrip(";")
        guard = None
        if found["guard"]:
            guard = self.operand(found["guard"])
            if not isinstance(guard, Register) or guard.bits != 1:
                raise Unknown(f"line {line}: {text}: guard {found['guard']}")
        operands, at, rest = [], 0, found["operands"].strip()
        while at < len(rest):
            part = OPERAND.match(rest, at)
            if not part:
                raise Unknown(f"line {line}: {text}: operands")
            operands.append(self.operand(part[1]))
            at = part.end()
        self.program.instructions.append(
            Instruction(found["opcode"], tuple(operands), guard, not found["negated"], text, line, self.source)
        )

    def operand(self, text: str) -> Operand:
        if text[0] == "{":
            return Vector(tuple(self.operand(item.strip()) for item in text[1:-1].split(",")))
        if "|" in text:
            return Vector(tuple(self.operand(item) for item in text.split("|")))
        if text[0] == "[":
            found = re.fullmatch(r"\[\s*([%$\w]+)\s*(?:\+\s*(-?\d+))?\s*\]", text)
            base = self.operand(found[1]) if found else None
            if not isinstance(base, Register | Symbol):
                raise Unknown(f"address {text}")
            return Address(base, int(found[2] or 0))
        for scope in reversed(self.scopes):
            if text in scope:
                return scope[text]
        if found := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", text):
            return Immediate(int(found[1], 16))
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|[1-9]\d*|0)U?", text):
            return Immediate(int(text.rstrip("U"), 0))
        if re.fullmatch(r"[$%\w][\w.$]*", text):
            return Symbol(text)
        raise Unknown(f"operand {text}")
