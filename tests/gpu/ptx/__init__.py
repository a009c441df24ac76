"""A PTX machine: runs what Triton compiled for an NVIDIA GPU, without one, and tells what a GPU would not.

    program = ptx.load(compiled.asm["ptx"], shared_bytes=compiled.metadata.shared)
    counters = ptx.launch(program, grid=(64, 1), arguments=[w, x, y, rows])

Read in this order: parse.py (text to instructions), values.py (what a register holds), alu.py and floats.py (one
line per instruction), warp.py (threads that exchange values, tensor cores), memory.py and races.py (addresses, what
may go wrong with them, what they cost), copies.py, machine.py (blocks, branches, barriers).

All threads of many blocks go in step, each instruction is one numpy operation over them. That is exact where a block
goes one way at every branch, as Triton's do; anything else is a fault, and so is whatever is not known or not certain:
an opcode, a number of operands, a result that the PTX manual leaves open. Not modelled: time, caches, and what ptxas
makes of the PTX.
"""

from ptx.buffers import Buffer, DeviceMemory
from ptx.faults import (
    Divergence,
    Fault,
    Misaligned,
    NotRepeatable,
    OutOfBounds,
    Race,
    Uninitialised,
    Unknown,
)
from ptx.machine import launch, launch_in
from ptx.memory import Counters, Requests
from ptx.parse import Program, load

__all__ = [
    "Buffer",
    "Counters",
    "DeviceMemory",
    "Divergence",
    "Fault",
    "Misaligned",
    "NotRepeatable",
    "OutOfBounds",
    "Program",
    "Race",
    "Requests",
    "Uninitialised",
    "Unknown",
    "launch",
    "launch_in",
    "load",
]
