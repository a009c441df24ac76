"""GPUs by name: what their drivers call memory, and how fast they are as far as this engine makes use of it.

None of it is measured here: bandwidths and operations are those that makers publish, times the share that kernels like
these are known to reach. `v4 doctor` measures a card that is there, and plans go by that.
"""

from dataclasses import dataclass

MIB = 1 << 20
READS = 0.85  # of the bandwidth of VRAM that decoding reaches; products of codes keep up with it
READS_HBM = 0.72  # where memory is so fast that instructions bound it
PCIE_3, PCIE_4, PCIE_5 = 11e9, 22e9, 50e9  # bytes/s of large copies from pinned memory, 16 lanes; 8 lanes: half
USUAL = "RTX 4090"  # stands for a card of which nothing but its memory is known


@dataclass(frozen=True)
class Card:
    """A GPU. `measured`: which of its rates are; the others are assumed."""

    name: str
    vram: int  # bytes, as its driver counts
    read: float  # bytes/s of VRAM that decoding reads
    link: float  # bytes/s from pinned memory of the host
    fp32: float  # operations/s at most
    int8: float  # operations/s that products of many rows reach
    measured: frozenset[str] = frozenset()


def _card(name: str, mib: int, bandwidth: float, link: float, fp32: float, int8: float, reads: float = READS) -> Card:
    """Published figures in MiB, GB/s, bytes/s, and tera-operations; `int8` as reached."""
    return Card(name, mib * MIB, reads * bandwidth * 1e9, link, fp32 * 1e12, int8 * 1e12)


# Of the int8 tensor cores half is reached, as the scales of the products take as long again; on Ampere as much as with
# fp16; on HBM cards, whose tensor cores are out of proportion to the rest, the scales alone decide.
CARDS = (
    _card("RTX 4060", 8188, 272, PCIE_4 / 2, 15.1, 60),
    _card("RTX 3060", 12288, 360, PCIE_4, 12.7, 25),
    _card("RTX 4070", 12282, 504, PCIE_4, 29.1, 116),
    _card("RTX 4080 SUPER", 16376, 736, PCIE_4, 52.2, 209),
    _card("RTX 5070 Ti", 16303, 896, PCIE_5, 43.9, 175),
    _card("RTX 3090", 24576, 936, PCIE_4, 35.6, 71),
    _card(USUAL, 24564, 1008, PCIE_4, 82.6, 330),
    _card("RTX 5090", 32607, 1792, PCIE_5, 104.8, 419),
    _card("L40S", 46068, 864, PCIE_4, 91.6, 366),
    _card("A100 80GB", 81920, 2039, PCIE_4, 19.5, 60, READS_HBM),
    _card("H100 80GB", 81559, 3350, PCIE_5, 67.0, 180, READS_HBM),
    _card("RTX PRO 6000", 97887, 1792, PCIE_5, 125.0, 500),
    _card("H200", 143771, 4800, PCIE_5, 67.0, 180, READS_HBM),
)


def named(text: str) -> Card | None:
    """The card that is meant: its name, a part of it that no other has ("4090"), or what a driver calls it."""
    told = _plain(text)
    if not told:
        return None
    for card in CARDS:
        if _plain(card.name) == told:
            return card
    inside = [card for card in CARDS if _plain(card.name) in told]
    if inside:
        return max(inside, key=lambda card: len(card.name))
    found = [card for card in CARDS if told in _plain(card.name)]
    return found[0] if len(found) == 1 else None


def like(vram: int) -> Card:
    """What a card with so much memory most likely is: the one nearest to it, the usual one of equals."""
    nearest = min(abs(card.vram - vram) for card in CARDS)
    return max((c for c in CARDS if abs(c.vram - vram) <= nearest + 64 * MIB), key=lambda card: card.name == USUAL)


def _plain(name: str) -> str:
    words = name.lower().replace("-", " ").replace("geforce", "").replace("nvidia", "").split()
    return "".join(words)
