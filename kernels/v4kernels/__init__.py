"""v4kernels: the operations a DeepSeek-V4 forward pass is made of, by backend.

`ops(backend, numerics)` gives an op table; every backend has the same op names and signatures, and `reference` is the
oracle for the others. `cpu`, the fast one, has numerics of its own (cpu.py): asking for `exact` (fp32) or `official`
ones (simulated quantization) means the reference.
"""

BACKENDS = ("reference", "cpu")
NUMERICS = ("exact", "official")


def ops(backend: str | None = None, numerics: str | None = None):
    """An op table. By default the fastest this machine has; `numerics` are those of the reference.

    ValueError for unknown names, for numerics on another backend, and for a kernel library that is missing.
    """
    if backend not in (None, *BACKENDS):
        raise ValueError(f"unknown backend {backend!r}; choose from {', '.join(BACKENDS)}")
    if numerics not in (None, *NUMERICS):
        raise ValueError(f"unknown numerics {numerics!r}; choose from {', '.join(NUMERICS)}")
    from v4kernels import native

    if backend is None:
        backend = "cpu" if numerics is None and native.available() else "reference"
    if backend == "cpu":
        if numerics is not None:
            raise ValueError(
                f"the cpu backend computes with int8 activations; {numerics} numerics need backend reference"
            )
        from v4kernels.cpu import CpuOps

        return CpuOps()
    from v4kernels.reference import ReferenceOps

    return ReferenceOps(numerics or "exact")
