"""How much of what experts are asked for a share of them serves.

Routers use experts unevenly, and a cache keeps those in use: share^EXPONENT of the requests are served where `share` of
the experts lie. Published hit rates of caches for V4 lie between the exponents RANGE, some below.
"""

EXPONENT = 0.45
RANGE = 0.65, 0.31  # of a poor cache, of a good one
EVEN = 1.0  # as if all experts were used equally often: the least that is to be expected


def served(share: float, exponent: float) -> float:
    """Of requests, in [0, 1], by the best `share` of the experts."""
    return share**exponent if share > 0 else 0.0
