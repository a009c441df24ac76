"""v4kernels: the operations a DeepSeek-V4 forward pass is made of, by backend.

`ops(backend, numerics)` gives an op table; every backend has the same op names, signatures and semantics,
and `reference` is the oracle for the others.
"""

BACKENDS = ("reference",)
NUMERICS = ("exact", "official")


def ops(backend: str = "reference", numerics: str = "exact"):
    """The op table of `backend` in one of the numeric modes. ValueError for unknown names."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; choose from {', '.join(BACKENDS)}")
    if numerics not in NUMERICS:
        raise ValueError(f"unknown numerics {numerics!r}; choose from {', '.join(NUMERICS)}")
    from v4kernels.reference import ReferenceOps

    return ReferenceOps(numerics)
