"""v4kernels: the operations a DeepSeek-V4 forward pass is made of, by backend.

`ops(backend, numerics)` gives an op table; every backend has the same op names and signatures, and `reference` is the
oracle for the others. `cpu` has numerics of its own (cpu.py): `exact` gives those, as they simulate nothing;
`official` it cannot do.
"""

BACKENDS = ("reference", "cpu")
NUMERICS = ("exact", "official")


def ops(backend: str = "reference", numerics: str = "exact"):
    """The op table of `backend` in one of the numeric modes. ValueError for unknown names, what it cannot do, and a
    kernel library that is missing."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; choose from {', '.join(BACKENDS)}")
    if numerics not in NUMERICS:
        raise ValueError(f"unknown numerics {numerics!r}; choose from {', '.join(NUMERICS)}")
    if backend == "cpu":
        if numerics == "official":
            raise ValueError("the cpu backend quantizes activations to int8; official numerics need backend reference")
        from v4kernels.cpu import CpuOps

        return CpuOps()
    from v4kernels.reference import ReferenceOps

    return ReferenceOps(numerics)
