"""Small PTX programs for tests of the machine itself."""

import numpy as np
import ptx
from ptx.values import DTYPES, width

HEAD = """
.version 8.6
.target sm_120
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry test(
{parameters}
)
.reqntid {threads}
{{
  .reg .pred %p<33>;
  .reg .b16 %rs<33>;
  .reg .b32 %r<33>;
  .reg .b64 %rd<33>;
{body}
}}
"""


def assemble(body: str, parameters: int = 0, threads: int = 32, shared_bytes: int = 0) -> ptx.Program:
    """A kernel of so many pointers. It begins with %r0 = thread, %r1 = block, %r2 = 4 * thread and, for each pointer i,
    %rdi; it ends with ret."""
    start = ["mov.u32 %r0, %tid.x;", "mov.u32 %r1, %ctaid.x;", "shl.b32 %r2, %r0, 2;"]
    start += [f"ld.param.b64 %rd{i}, [test_param_{i}];" for i in range(parameters)]
    declared = ",\n".join(f".param .u64 .ptr .global .align 1 test_param_{i}" for i in range(parameters))
    text = HEAD.format(parameters=declared, threads=threads, body="\n".join([*start, body, "ret;"]))
    return ptx.load(text, shared_bytes)


def run(body: str, *arrays: np.ndarray, threads: int = 32, blocks: int = 1, shared_bytes: int = 0) -> ptx.Counters:
    """Each array is a pointer."""
    return ptx.launch(assemble(body, len(arrays), threads, shared_bytes), (blocks,), arrays)


def register(kind: str, number: int) -> str:
    if kind == "pred":
        return f"%p{number}"
    return {16: "%rs", 32: "%r", 64: "%rd"}[max(width(kind), 16)] + str(number)


def execute(opcode: str, types: str, *operands: np.ndarray | int) -> np.ndarray:
    """One instruction, one thread for each element. Types are of the result and the operands, arrays or immediates;
    f32x2 arrays are [n, 2]."""
    result, *kinds = types.split()
    n = next(len(o) for o in operands if isinstance(o, np.ndarray))
    threads = -(-n // 32) * 32
    body, names, inputs = [], [], []
    for kind, operand in zip(kinds, operands):
        if isinstance(operand, int):
            names.append(str(operand))
            continue
        names.append(register(kind, 16 + len(names)))
        body += [*address(f"%rd{len(inputs)}", width(kind)), f"ld.global.b{width(kind)} {names[-1]}, [%rd32];"]
        inputs.append(padded(operand, kind, threads))
    body.append(f"{opcode} {register(result, 8)}, {', '.join(names)};")
    stored = result
    if result == "pred":
        body.append("selp.b16 %rs8, 1, 0, %p8;")
        stored = "u8"
    body += [
        *address(f"%rd{len(inputs)}", width(stored)),
        f"st.global.b{width(stored)} [%rd32], {register(stored, 8)};",
    ]
    out = np.zeros(threads * width(stored) // 8, np.uint8)
    run("\n".join(body), *inputs, out, threads=threads)
    if result == "f32x2":
        return out.view(np.float32).reshape(-1, 2)[:n]
    return out.view(DTYPES[result])[:n]


def address(base: str, bits: int) -> list[str]:
    """%rd32 = base + bytes of as many elements as the thread's number."""
    return [f"mul.wide.u32 %rd32, %r0, {bits // 8};", f"add.s64 %rd32, {base}, %rd32;"]


def padded(array: np.ndarray, kind: str, threads: int) -> np.ndarray:
    dtype = np.float32 if kind == "f32x2" else DTYPES[kind]
    result = np.zeros((threads, *array.shape[1:]), dtype)
    result[: len(array)] = array.astype(dtype, copy=False)
    return result
