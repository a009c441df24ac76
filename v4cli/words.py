"""Figures in words, for people."""


def span(seconds: float) -> str:
    """A time for people: 12 s, 3 min 20 s, 47 min, 1 h 12 min, 2 d 3 h."""
    whole = round(seconds)
    for unit, length, small, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= length:
            rest = f" {whole % length // part} {small}" if whole % length // part and whole < 10 * length else ""
            return f"{whole // length} {unit}{rest}"
    return f"{whole} s"
