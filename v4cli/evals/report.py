"""From results of items to figures: of a model, as a table, as its price tag, and of two models on the same items."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from v4cli.evals import statistics
from v4cli.evals.items import Item
from v4cli.evals.journal import Journal
from v4cli.evals.statistics import Estimate

Results = dict[str, dict[str, dict]]  # by part, then by name of the item
HEAD = ("PART", "OF", "FIGURE", "95 %", "N")


def results_of(items: Iterable[Item], journal: Journal) -> Results:
    """What there is of these items."""
    found: Results = {}
    for item in items:
        for part in item.parts:
            if (part, item.name) in journal.results:
                found.setdefault(part, {})[item.name] = journal.results[part, item.name]
    return found


def figures(results: Results) -> dict[str, dict]:
    """By part, as JSON has them."""
    return {part: FIGURES[part](list(its.values())) for part, its in results.items()}


def _by(key: str, results: Sequence[dict]) -> dict[str, list[dict]]:
    groups: dict[str, list[dict]] = {}
    for result in results:
        groups.setdefault(str(result[key]), []).append(result)
    return groups


def _column(results: Iterable[dict], key: str) -> list[list[float]]:
    return [result[key] for result in results]


def _lengths(results: list[dict], key: str, at: Callable[[list[dict]], dict]) -> dict:
    """Figures by length, of those at which a position counts."""
    found = {length: at(windows) for length, windows in _by("length", results).items() if any(_column(windows, key))}
    return {"lengths": found}


def _kld(results: list[dict]) -> dict:
    return _lengths(results, "kld", _kld_at)


def _kld_at(windows: list[dict]) -> dict:
    values, same = _column(windows, "kld"), _column(windows, "same")
    flat = [value for window in values for value in window]
    about = {
        "mean": statistics.mean(values).to_dict(),
        "p99": statistics.quantile(flat, 0.99),
        "cvar95": statistics.worst_mean(flat),
        "top1": statistics.mean(same).to_dict(),
    }
    if all("floor" in window for window in windows):
        floor = _column(windows, "floor")
        about["floor"] = statistics.mean(floor).to_dict()
        about["floor_top1"] = statistics.mean(_column(windows, "floor_same")).to_dict()
        about["above_floor"] = statistics.difference(floor, values).to_dict()
    return about


def _ppl(results: list[dict]) -> dict:
    return _lengths(results, "nll", _ppl_at)


def _ppl_at(windows: list[dict]) -> dict:
    nll = _column(windows, "nll")
    about = {"perplexity": _exponential(statistics.mean(nll)).to_dict()}
    if all("reference" in window for window in windows):
        reference = _column(windows, "reference")
        about["reference"] = _exponential(statistics.mean(reference)).to_dict()
        about["ratio"] = _exponential(statistics.difference(reference, nll)).to_dict()
    return about


def _exponential(of: Estimate) -> Estimate:
    return Estimate(*(math.exp(min(value, 700.0)) for value in (of.value, of.low, of.high)), of.n)


def _state(results: list[dict]) -> dict:
    equal = sum(result["equal"] for result in results)
    return {"checks": len(results), "equal": equal, "largest": max(result["largest"] for result in results)}


def _tools(results: list[dict]) -> dict:
    tried = [result["well_formed"] for result in results if result["well_formed"] is not None]
    return {
        "exact": _share(results, "exact"),
        "names": _share(results, "names"),
        "well_formed": statistics.share(tried).to_dict() if tried else None,
        "loops": sum(result["loop"] for result in results),
        "kinds": _rights("kind", results, "exact"),
    }


def _needle(results: list[dict]) -> dict:
    lengths, kinds = _rights("length", results, "right"), _rights("kind", results, "right")
    return {"right": _share(results, "right"), "lengths": lengths, "kinds": kinds}


def _code(results: list[dict]) -> dict:
    return {"right": _share(results, "right"), "kinds": _rights("kind", results, "right")}


def _share(results: list[dict], key: str) -> dict:
    return statistics.share([result[key] for result in results]).to_dict()


def _rights(by: str, results: list[dict], key: str) -> dict[str, list[int]]:
    """How many are right, and how many there are, by kind."""
    return {name: [sum(r[key] for r in group), len(group)] for name, group in _by(by, results).items()}


FIGURES: Mapping[str, Callable[[list[dict]], dict]] = {
    "kld": _kld, "ppl": _ppl, "state": _state, "tools": _tools, "needle": _needle, "code": _code,
}  # fmt: skip


# -- as a table --------------------------------------------------------------------------------------------------


def rows(found: dict[str, dict]) -> list[tuple[str, ...]]:
    """A table of figures, its head first."""
    lines = [HEAD]
    for part, about in found.items():
        lines += [(part, *line) for line in ROWS[part](about)]
    return lines


def number(value: float) -> str:
    """For people: four digits, small ones with an exponent."""
    return "0" if value == 0 else f"{value:.4f}" if 0.001 <= abs(value) < 10 else f"{value:.4g}"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _between(of: dict, say: Callable[[float], str] = number) -> tuple[str, str]:
    """Interval and n."""
    return f"{say(of['low'])} to {say(of['high'])}", f"{of['n']:,}"


def _kld_rows(about: dict) -> list[tuple[str, ...]]:
    lines = []
    for length, at in about["lengths"].items():
        where = f"{int(length):,} tokens"
        lines.append((where, f"{number(at['mean']['value'])} nats", *_between(at["mean"])))
        lines.append(("  worst", f"p99 {number(at['p99'])}, CVaR95 {number(at['cvar95'])}", "", ""))
        lines.append(("  same top token", percent(at["top1"]["value"]), *_between(at["top1"], percent)))
        if "floor" in at:
            moved = f"{number(at['floor']['value'])} nats, same top token {percent(at['floor_top1']['value'])}"
            lines.append(("  noise floor", moved, *_between(at["floor"])))
            lines.append(("  above it", f"{number(at['above_floor']['value'])} nats", *_between(at["above_floor"])))
        else:
            lines.append(("  noise floor", "not measured", "", ""))
    return lines


def _ppl_rows(about: dict) -> list[tuple[str, ...]]:
    lines = []
    for length, at in about["lengths"].items():
        lines.append((f"{int(length):,} tokens", number(at["perplexity"]["value"]), *_between(at["perplexity"])))
        if "ratio" in at:
            ratio = f"{number(at['ratio']['value'])} of {number(at['reference']['value'])}"
            lines.append(("  to the reference", ratio, *_between(at["ratio"])))
    return lines


def _state_rows(about: dict) -> list[tuple[str, ...]]:
    same = f"{about['equal']} of {about['checks']} ways are the same to the bit"
    return [("ways to a place", f"{same}, largest difference {number(about['largest'])}", "", f"{about['checks']}")]


def _tools_rows(about: dict) -> list[tuple[str, ...]]:
    whole = about["well_formed"]
    lines = [("exact", percent(about["exact"]["value"]), *_between(about["exact"], percent))]
    lines.append(("  right tools", percent(about["names"]["value"]), *_between(about["names"], percent)))
    if whole:
        lines.append(("  well-formed", percent(whole["value"]), *_between(whole, percent)))
    return [*lines, ("  loops", str(about["loops"]), "", ""), *_kind_rows(about["kinds"])]


def _kind_rows(kinds: dict[str, list[int]]) -> list[tuple[str, ...]]:
    return [(f"  {name}", f"{right} right", "", str(n)) for name, (right, n) in kinds.items()]


def _right_rows(about: dict) -> list[tuple[str, ...]]:
    lines = [("right", percent(about["right"]["value"]), *_between(about["right"], percent))]
    lengths = {f"{int(length):,} tokens": of for length, of in about.get("lengths", {}).items()}
    return [*lines, *_kind_rows(lengths), *_kind_rows(about["kinds"])]


ROWS: Mapping[str, Callable[[dict], list[tuple[str, ...]]]] = {
    "kld": _kld_rows, "ppl": _ppl_rows, "state": _state_rows, "tools": _tools_rows, "needle": _right_rows,
    "code": _right_rows,
}  # fmt: skip
