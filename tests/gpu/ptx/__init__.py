"""A PTX machine: runs what Triton compiled for an NVIDIA GPU, without one, and tells what a GPU would not.

    program = ptx.load(compiled.asm["ptx"], shared_bytes=compiled.metadata.shared)
    counters = ptx.launch(program, grid=(64, 1), arguments=[w, x, y, rows])

or over memory that stays from launch to launch, where kernels follow the addresses that they find:

    memory = ptx.DeviceMemory()
    x = memory.place("x", size=4096)
    ptx.launch_in(memory, program, (64, 1), [x.address, rows])

Read in this order: parse.py (text to instructions), values.py (what a register holds), alu.py and floats.py (one
line per instruction), action.py and bind.py (what an instruction does), warp.py and together.py (threads that exchange
values, tensor cores), memory.py, races.py and access.py (addresses, what may go wrong with them, what they cost),
buffers.py, device.py and host.py (memory that stays, or that the host has too), copies.py, compose.py (instructions to
functions, branches), machine.py (blocks).

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
