"""Kernels for GPUs, written in Triton: the sums of v4k.h in the order that it documents, so the bits are the CPU's.

Nothing imports this package but what runs on a GPU or tests that it would: the other backends do without Triton.

`ops.py` is the op table; `dense.py`, `attention.py` and `mixture.py` launch, over weights (weights.py), timelines
(state.py) and records of steps (record.py) in memory of a device (device.py, memory.py).

`sums.py` holds the arithmetic that decides bits and `dots.py` the products of codes; a kernel is written in terms of
both, one file per kind. `launch.py` compiles, for a GPU that need not be there.
"""
