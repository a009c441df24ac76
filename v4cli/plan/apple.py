"""Apple's chips: the most memory they come with, in GB, and its bandwidth in bytes/s, as Apple's technical
specifications say it; of chips that come with more or fewer channels, the most. The CPU alone may reach less: what it
reaches is measured (v4cli/hardware.py)."""

CHIPS = {
    "M1": (16, 68.25e9), "M1 Pro": (32, 200e9), "M1 Max": (64, 400e9), "M1 Ultra": (128, 800e9),
    "M2": (24, 100e9), "M2 Pro": (32, 200e9), "M2 Max": (96, 400e9), "M2 Ultra": (192, 800e9),
    "M3": (24, 100e9), "M3 Pro": (36, 150e9), "M3 Max": (128, 400e9), "M3 Ultra": (512, 819e9),
    "M4": (32, 120e9), "M4 Pro": (64, 273e9), "M4 Max": (128, 546e9),
}  # fmt: skip


def bandwidth(processor: str) -> float | None:
    """Of a processor as its system names it ("Apple M3 Max"), bytes/s; None of any other."""
    maker, _, chip = processor.partition(" ")
    return CHIPS[chip][1] if maker == "Apple" and chip in CHIPS else None
