"""What a kernel takes of a GPU: resources, and the instructions of its main loop, by the tools in Triton's wheel."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Resources:
    """Of a thread: registers, and bytes of stack, where spilled ones go; of a block: bytes of shared memory."""

    registers: int
    stack: int
    shared: int


@dataclass(frozen=True)
class Loop:
    """The innermost loop with the most products, of floats where there are none of integers."""

    instructions: int
    opcodes: Counter[str]  # without modifiers
    wide_loads: int  # of 128 bits, from device memory
    products: int  # of integers, by dp4a and matrix instructions; a thread's share


def nvidia(compiled: Any) -> tuple[Resources, Loop]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    found = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(.*?)\s*;", code, re.M)
    lines = [(int(at, 16), text) for at, text in found]
    loops = [summed(body) for body in innermost(lines)]
    none = Loop(0, Counter(), 0, 0)
    most = max(loops, key=lambda b: (b.products, b.opcodes["FFMA"]), default=none)
    return Resources(registers, stack, compiled.metadata.shared), most


def innermost(lines: list[tuple[int, str]]) -> list[list[str]]:
    """Bodies of loops that have none within."""
    jumps = [(int(m[1], 16), at) for at, text in lines if (m := re.match(r"BRA.*\b0x([0-9a-f]+)", text))]
    return [[text for at, text in lines if first <= at <= last] for first, last in inner_spans(jumps)]


def inner_spans(jumps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of jumps (to, from) those back that have none within."""
    spans = [(to, at) for to, at in jumps if to < at]
    return [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]


def summed(body: list[str]) -> Loop:
    opcodes = Counter(text.split()[0].split(".")[0] for text in body)
    products = 4 * sum(text.startswith("IDP.4A") for text in body)
    for text in body:
        if shape := re.match(r"IMMA\.(\d\d)(\d)(\d\d)\.|IMMA\.(\d\d)(\d\d)(\d\d)\.", text):
            m, n, k = (int(x) for x in shape.groups() if x)
            products += m * n * k // 32
        if shape := re.match(r"IGMMA\.(\d+)x(\d+)x(\d+)\.", text):
            m, n, k = map(int, shape.groups())
            products += m * n * k // 128  # by four warps
    return Loop(len(body), opcodes, sum(t.startswith("LDG.E.128") for t in body), products)


def amd(compiled: Any) -> tuple[Resources, Loop]:
    """There is no register spilled where there is no stack, but for scalar ones, which go to vector registers."""
    code = compiled.asm["amdgcn"]
    registers, stack = (
        int(re.search(rf"\.{name}:\s+(\d+)", code)[1]) for name in ("vgpr_count", "private_segment_fixed_size")
    )
    lines = re.findall(r"^(\.LBB\w+)(?=:)|^\t([a-z]\w*.*?)\s*(?:;.*)?$", code, re.M)
    labels = {label: at for at, (label, _) in enumerate(lines) if label}
    spans = [
        (labels[m[1]], at) for at, (_, text) in enumerate(lines) if (m := re.match(r"s_c?branch\w* (\.LBB\w+)", text))
    ]
    bodies = [[text for _, text in lines[first : last + 1] if text] for first, last in inner_spans(spans)]
    loop = max(map(amd_summed, bodies), key=lambda b: b.products, default=Loop(0, Counter(), 0, 0))
    return Resources(registers, stack, compiled.metadata.shared), loop


def amd_summed(body: list[str]) -> Loop:
    opcodes = Counter(text.split()[0] for text in body)
    products = 4 * sum(count for opcode, count in opcodes.items() if opcode.startswith("v_dot4"))
    for opcode, count in opcodes.items():
        if shape := re.match(r"v_(mfma|wmma)_i32_(\d+)x(\d+)x(\d+)_", opcode):
            m, n, k = (int(size) for size in shape.groups()[1:])
            products += count * m * n * k // (64 if shape[1] == "mfma" else 32)
    wide = opcodes["global_load_dwordx4"] + opcodes["global_load_b128"]
    return Loop(len(body), opcodes, wide, products)
