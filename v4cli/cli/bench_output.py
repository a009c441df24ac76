"""What `v4 bench --ctx` prints: tables and bars for people, CSV, JSON, a PNG. What is random is called so in each."""

import csv
import sys
from pathlib import Path

from v4cli.cli import output
from v4cli.errors import UsageError
from v4cli.files import open_own

BAR = 40  # columns of the longest bar
PARTS = {"weights": "reading", "index": "int8", "attention": "fp32", "python": ""}  # and ceilings


def labels(about: dict) -> str:
    """What of the measurement is not real, in words; empty if all is."""
    random = ["random weights"] if about["weights"] == "random" else []
    random += ["random cache entries (synthetic fill)"] if about["cache"] == "random entries" else []
    return ", ".join(random)


def as_json(about: dict, frontiers: list[dict]) -> None:
    output.json_page(about | {"frontiers": frontiers})


def as_csv(about: dict, frontiers: list[dict]) -> None:
    """One row per frontier; nested names are joined by dots."""
    rows = [about | _flat(frontier) for frontier in frontiers]
    out = csv.DictWriter(output.Csv, rows[0])
    out.writeheader()
    out.writerows(rows)


def _flat(value: dict, prefix: str = "") -> dict:
    flat = {}
    for key, part in value.items():
        flat |= _flat(part, f"{prefix}{key}.") if isinstance(part, dict) else {prefix + key: part}
    return flat


def as_text(about: dict, frontiers: list[dict]) -> None:
    """Tables, then bars of decoding speed."""
    note = labels(about)
    where = f", cache in {about['kv_dir']}" if about["kv_dir"] else ""
    output.answer(f"{about['model']}, {about['backend']} backend, {about['isa']}, {about['threads']} threads{where}\n")
    if note:
        output.answer(f"synthetic: {note}; only speed and size mean something\n")
    _grid("Speed (tokens/s) and memory", _speed(frontiers))
    _grid("Time of a decoded token by part, and share reached of the ceiling that bounds it", _time(frontiers))
    _grid("Read by a decoded token", _reads(frontiers))
    _grid("Work of a decoded token; the model as a whole beside V3.2", _work(frontiers))
    if frontiers[0]["recall"]:
        asked = ((f"{f['n_tokens']:,}", f"{f['recall']['right']} of {f['recall']['asked']}") for f in frontiers)
        _grid("Facts told before the first frontier, answered right", [("CONTEXT", "RECALLED"), *asked])
    if frontiers[0]["whole"]:
        title = f"ESTIMATE for all {frontiers[0]['whole']['layers']} layers, from the times of those measured"
        _grid(title, _whole(frontiers))
        _grid(f"{title}: a decoded token by part", _time([f["whole"] | {"n_tokens": f["n_tokens"]} for f in frontiers]))
    _bars(f"decoded tokens/s{' - ' + note if note else ''}", frontiers)


def _speed(frontiers: list[dict]) -> list[tuple[str, ...]]:
    first = f"AT {frontiers[0]['n_tokens']:,} MEANWHILE"
    rows = [("CONTEXT", "DECODE", first, "RETAINED", "PREFILL", "OF INT8", "OF FP32", "KV", "RESIDENT", "BOUND BY")]
    for f in frontiers:
        prefill = (f"{f['prefill_tokens_per_s']:.4g}", *(_percent(part) for part in f["prefill_fraction"].values()))
        memory = output.size(f["kv_bytes"]), output.size(f["kv_resident_bytes"])
        rate = f"{f['decode_tokens_per_s']:.4g}", f"{f['first_tokens_per_s']:.4g}", _percent(f["retention"])
        rows.append((f"{f['n_tokens']:,}", *rate, *prefill, *memory, f["bound"]))
    return rows


def _time(frontiers: list[dict]) -> list[tuple[str, ...]]:
    heads = (name.upper() + (f" (OF {of.upper()})" if of else "") for name, of in PARTS.items())
    rows = [("CONTEXT", "TOKEN", "OF READING", *heads)]
    for f in frontiers:
        token = _ms(1 / f["decode_tokens_per_s"]), _percent(f["read_fraction"])
        rows.append((f"{f['n_tokens']:,}", *token, *(_part(f["parts"][name]) for name in PARTS)))
    return rows


def _part(part: dict) -> str:
    return _ms(part["seconds"]) + (f" ({_percent(part['reached'])})" if part["reached"] else "")


def _reads(frontiers: list[dict]) -> list[tuple[str, ...]]:
    names = list(frontiers[0]["bytes_read"])
    rows = [("CONTEXT", "ALL", *(name.replace("_", " ").upper() for name in names), "FROM DISK")]
    for f in frontiers:
        read, disk = f["bytes_read"], f["disk_read_bytes"]
        sizes = (sum(read.values()), *(read[name] for name in names))
        rows.append((f"{f['n_tokens']:,}", *map(output.size, sizes), "unknown" if disk is None else output.size(disk)))
    return rows


def _work(frontiers: list[dict]) -> list[tuple[str, ...]]:
    rows = [("CONTEXT", "FLOPS", "INDEX", "ATTENTION", "OF V3.2 FLOPS", "OF V3.2 KV", "KV OF ALL LAYERS")]
    for f in frontiers:
        index = f["flops"]["indexer_scores"] + f["flops"]["indexer_projection"]
        work = (f"{part / 1e9:.4g} G" for part in (sum(f["flops"].values()), index, f["flops"]["attention"]))
        ratios = _percent(f["v32_flops_ratio"]), _percent(f["v32_kv_ratio"])
        rows.append((f"{f['n_tokens']:,}", *work, *ratios, output.size(f["whole_kv_bytes"])))
    return rows


def _whole(frontiers: list[dict]) -> list[tuple[str, ...]]:
    kinds = list(frontiers[0]["whole"]["layer_s"])
    heads = (f"{kind.upper()} LAYER" for kind in kinds)
    rows = [("CONTEXT", "DECODE", "RETAINED", *heads, "EMBED, HEAD", "READ", "BOUND BY")]
    for f in frontiers:
        whole = f["whole"]
        times = map(_ms, (*(whole["layer_s"][kind] for kind in kinds), whole["rest_s"]))
        rate = f"{whole['decode_tokens_per_s']:.4g}", _percent(whole["retention"])
        read = output.size(sum(whole["bytes_read"].values()))
        rows.append((f"{f['n_tokens']:,}", *rate, *times, read, whole["bound"]))
    return rows


def _grid(title: str, rows: list[tuple[str, ...]]) -> None:
    """A rich table on a terminal, aligned columns elsewhere."""
    output.answer("\n")
    if not output.styled(sys.stdout):
        output.answer(f"{title}\n")
        output.table(rows)
        return
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="right", overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    output.console().print(table)


def _bars(title: str, frontiers: list[dict]) -> None:
    most = max(f["decode_tokens_per_s"] for f in frontiers)
    output.answer(f"\n{title}\n")
    for f in frontiers:
        rate = f["decode_tokens_per_s"]
        output.answer(f"{f['n_tokens']:>9,} {'█' * max(1, round(BAR * rate / most))} {rate:.4g}\n")


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{1e3 * seconds:,.0f} ms"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


STYLES = {"text": as_text, "csv": as_csv, "json": as_json}


def check_plot(path: Path) -> None:
    """UsageError unless a PNG can be written there: better now than after the measurement."""
    if path.suffix.lower() != ".png" or not path.absolute().parent.is_dir():
        raise UsageError(f"--plot {path}: must be a .png file in a folder that exists")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("--plot needs matplotlib", "pip install 'v4cli[bench]'") from None


def save_plot(about: dict, frontiers: list[dict], path: Path) -> None:
    with open_own(path, 0o644) as file:
        draw(about, frontiers).savefig(file, format="png", dpi=120)
    output.note(f"plot: {path}")


def draw(about: dict, frontiers: list[dict]):
    """A matplotlib figure: tokens/s, and the time of a decoded token by part, over the context."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    speed, time = figure.subplots(1, 2)
    note = labels(about)
    figure.suptitle(about["model"] + (f"\nsynthetic: {note}" if note else ""), fontsize=10)
    x = [f["n_tokens"] for f in frontiers]
    speed.plot(x, [f["decode_tokens_per_s"] for f in frontiers], "o-", label="decode")
    speed.plot(x, [f["prefill_tokens_per_s"] for f in frontiers], "s-", label="prefill")
    if frontiers[0]["whole"]:
        estimates = [f["whole"]["decode_tokens_per_s"] for f in frontiers]
        speed.plot(x, estimates, "o--", label=f"decode, estimate for {frontiers[0]['whole']['layers']} layers")
    speed.set(xscale="log", yscale="log", xlabel="tokens of context", ylabel="tokens/s")
    parts = [[1e3 * f["parts"][name]["seconds"] for f in frontiers] for name in PARTS]
    time.stackplot(x, parts, labels=PARTS)
    time.set(xscale="log", xlabel="tokens of context", ylabel="ms of a decoded token")
    for axes in (speed, time):
        axes.set_xticks(x, [f"{n:,}" for n in x], fontsize=8)
        axes.minorticks_off()
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    return figure
