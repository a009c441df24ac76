"""The reference backend: plain torch."""

from v4kernels.reference.equations import Equations, LazyWeight, Weight
from v4kernels.reference.forward import Reference, ReferenceOps

__all__ = ["Equations", "LazyWeight", "Reference", "ReferenceOps", "Weight"]
