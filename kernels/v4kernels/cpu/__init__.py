"""The CPU backend: our own kernels over plain memory."""

from v4kernels.cpu.bound import ExpertTable, PackedWeight
from v4kernels.cpu.ops import Buffer, Cpu, CpuBatch, CpuOps, default_threads

__all__ = ["Buffer", "Cpu", "CpuBatch", "CpuOps", "ExpertTable", "PackedWeight", "default_threads"]
