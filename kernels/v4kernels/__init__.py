"""v4kernels: the operations a DeepSeek-V4 forward pass is made of, by backend.

`backend(name, numerics)` gives what makes op tables; api.py is the contract that all of them keep, and `reference` the
oracle for the others. `cpu`, the fast one, has numerics of its own (cpu/ops.py): asking for `exact` (fp32) or
`official` ones (simulated quantization) means the reference.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from v4kernels.api import Backend

BACKENDS = ("reference", "cpu")
NUMERICS = ("exact", "official")


def backend(name: str | None = None, numerics: str | None = None) -> "Backend":
    """A backend, by default the fastest this machine has; `numerics` are those of the reference.

    ValueError for unknown names, for numerics on another backend, and for a kernel library that is missing.
    """
    if name not in (None, *BACKENDS):
        raise ValueError(f"unknown backend {name!r}; choose from {', '.join(BACKENDS)}")
    if numerics not in (None, *NUMERICS):
        raise ValueError(f"unknown numerics {numerics!r}; choose from {', '.join(NUMERICS)}")
    from v4kernels import native

    if name is None:
        name = "cpu" if numerics is None and native.available() else "reference"
    if name == "cpu":
        if numerics is not None:
            raise ValueError(
                f"the cpu backend computes with int8 activations; {numerics} numerics need backend reference"
            )
        from v4kernels.cpu import Cpu

        return Cpu()
    from v4kernels.reference import Reference

    return Reference(numerics or "exact")
