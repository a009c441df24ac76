"""What a card must show: lines with a limit each, from what the parts of a check have found."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

PASS, FAIL, NOT_RUN = "pass", "fail", "not-run"

Found = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One line of acceptance; `value` is None where it was not measured, or is not asked of this card."""

    name: str
    limit: str
    value: float | None
    verdict: str


@dataclass(frozen=True)
class Rule:
    name: str
    at_least: float | None  # else at most
    at_most: float | None
    value: Callable[[Found], float | None]
    card: str = ""  # asked only of cards with this in their name

    def line(self, card: str, found: Found) -> Line:
        limit = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"
        if self.card:
            limit += f" on an {self.card}"
        value = self.value(found) if self.card in card else None
        if value is None:
            return Line(self.name, limit, None, NOT_RUN)
        good = value >= self.at_least if self.at_least is not None else value <= (self.at_most or 0)
        return Line(self.name, limit, value, PASS if good else FAIL)


def _rows(found: Found, op: str) -> list[Found]:
    return [row for row in found.get("kernels", {}).get("kernels", []) if row["op"] == op]


def _of_read(op: str) -> Callable[[Found], float | None]:
    """Part of read bandwidth of all matrices that an op reads, the fastest way of each."""

    def value(found: Found) -> float | None:
        rows, read = _rows(found, op), found.get("kernels", {}).get("limits", {}).get("read")
        if not rows or not read:
            return None
        best: dict[str, Found] = {}
        for row in rows:
            if row["of"] not in best or row["us"] < best[row["of"]]["us"]:
                best[row["of"]] = row
        return sum(row["bytes"] for row in best.values()) / sum(row["us"] for row in best.values()) / 1e3 / read

    return value


def _us(op: str, shape: str) -> Callable[[Found], float | None]:
    def value(found: Found) -> float | None:
        return next((row["us"] for row in _rows(found, op) if row["shape"] == shape), None)

    return value


def _limit(name: str) -> Callable[[Found], float | None]:
    return lambda found: found.get("kernels", {}).get("limits", {}).get(name)


def _decode(found: Found, ctx: int, hits: int) -> float | None:
    rows = found.get("model", {}).get("decode", [])
    return next((row["tokens_per_s"] for row in rows if row["ctx"] == ctx and row["hits_wanted"] == hits), None)


def _retention(found: Found) -> float | None:
    short, long = _decode(found, 4_000, 100), _decode(found, 1_000_000, 100)
    return long / short if short and long else None


def _parity(found: Found) -> float | None:
    """Part of the tests, nano's among them, that passed; None unless all were run."""
    parity = found.get("parity", {})
    tests, nano = parity.get("tests"), parity.get("nano")
    if not tests or not tests["run"] or not tests["whole"] or not nano:
        return None
    return (tests["passed"] + nano["equal"]) / (tests["run"] + nano["tokens"])


RULES = (
    Rule("parity with the CPU", 1.0, None, _parity),
    Rule("int8 GEMV, of read bandwidth", 0.75, None, _of_read("int8 linear")),
    Rule("FP4 experts, of read bandwidth", 0.55, None, _of_read("fp4 experts")),
    Rule("attention to 640 keys, us", None, 25, _us("attention", "640 keys")),
    Rule("choice among 262,144 keys, us", None, 40, _us("index choice", "262144 keys")),
    Rule("node of a graph, us", None, 1.5, _limit("node_us")),
    Rule("hand-off to the CPU and back, us", None, 10, _limit("hand_off_us")),
    Rule("decode at 4k, all experts on the card, tokens/s", 120, None, lambda f: _decode(f, 4_000, 100), "H200"),
    Rule("speed kept at 1M tokens", 0.8, None, _retention),
)


def accept(card: str, found: Found) -> list[dict[str, Any]]:
    """`found`: by part. A line for every rule."""
    return [asdict(rule.line(card, found)) for rule in RULES]
