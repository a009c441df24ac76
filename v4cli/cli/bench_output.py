"""What `v4 bench --ctx` prints: tables and bars for people, CSV, JSON, a PNG. What is random is called so in each."""

import csv
import io
from pathlib import Path

from v4cli import terminal
from v4cli.bench.load import MOST
from v4cli.cli import output
from v4cli.cli.bench import in_doubt, share, tell_doubts
from v4cli.errors import UsageError
from v4cli.files import open_own
from v4cli.paths import NANO

BAR = 40  # columns of the longest bar
PARTS = {"weights": "reading", "index": "int8", "attention": "fp32", "python": ""}  # and ceilings
SHADES = ("0.15", "0.40", "0.62", "0.80", "0.93")  # greys, which stay what they are in print
HATCHES = ("", "//", "..", "xx", "")


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
    output.paragraph(f"{about['model']}, {about['backend']} backend, {about['isa']}, {about['threads']} threads{where}")
    if note:
        output.paragraph(f"synthetic: {note}; only speed and size mean something")
    _grid("Speed (tokens/s)", _speed(frontiers))
    _grid("Memory", _memory(frontiers))
    _grid("Time of a decoded token by part, and share reached of the ceiling that bounds it", _time(frontiers))
    _grid("Read by a decoded token", _reads(frontiers))
    _grid("Work of a decoded token; the model as a whole beside V3.2", _work(frontiers))
    if frontiers[0]["recall"]:
        asked = ((f"{f['n_tokens']:,}", f"{f['recall']['right']} of {f['recall']['asked']}") for f in frontiers)
        _grid("Facts told before the first frontier, answered right", [("CONTEXT", "RECALLED"), *asked])
    if frontiers[0]["whole"]:
        title = f"ESTIMATE for all {frontiers[0]['whole']['layers']} layers, from the times of those measured"
        _grid(title, _whole(frontiers))
        _grid(f"{title}: a decoded token by part", _time([_of_whole(f) for f in frontiers]))
    if any(in_doubt(max(part["reached"] for part in f["parts"].values()), f) for f in frontiers):
        tell_doubts(frontiers)
    _bars(f"decoded tokens/s{' - ' + note if note else ''}", frontiers)


def _of_whole(frontier: dict) -> dict:
    """The estimate for all layers, with what holds of it as of those measured."""
    return frontier["whole"] | {name: frontier[name] for name in ("n_tokens", "others") if name in frontier}


def _speed(frontiers: list[dict]) -> list[tuple[str, ...]]:
    first = f"AT {frontiers[0]['n_tokens']:,} MEANWHILE"
    rows = [("CONTEXT", "DECODE", first, "RETAINED", "PREFILL", "OF INT8", "OF FP32")]
    for f in frontiers:
        prefill = (f"{f['prefill_tokens_per_s']:.4g}", *(share(part, f) for part in f["prefill_fraction"].values()))
        rate = f"{f['decode_tokens_per_s']:.4g}", f"{f['first_tokens_per_s']:.4g}", _percent(f["retention"])
        rows.append((f"{f['n_tokens']:,}", *rate, *prefill))
    return rows


def _memory(frontiers: list[dict]) -> list[tuple[str, ...]]:
    rows = [("CONTEXT", "KV", "RESIDENT", "A TOKEN IS BOUND BY")]
    for f in frontiers:
        sizes = output.size(f["kv_bytes"]), output.size(f["kv_resident_bytes"])
        rows.append((f"{f['n_tokens']:,}", *sizes, f["bound"]))
    return rows


def _time(frontiers: list[dict]) -> list[tuple[str, ...]]:
    heads = (name.upper() + (f" (OF {of.upper()})" if of else "") for name, of in PARTS.items())
    rows = [("CONTEXT", "TOKEN", "OF READING", *heads)]
    for f in frontiers:
        token = _ms(1 / f["decode_tokens_per_s"]), share(f["read_fraction"], f)
        rows.append((f"{f['n_tokens']:,}", *token, *(_part(f["parts"][name], f) for name in PARTS)))
    return rows


def _part(part: dict, measured: dict) -> str:
    return _ms(part["seconds"]) + (f" ({share(part['reached'], measured)})" if part["reached"] else "")


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
    output.paragraph(f"\n{title}")
    output.table(rows)


def _bars(title: str, frontiers: list[dict]) -> None:
    most = max(f["decode_tokens_per_s"] for f in frontiers)
    output.answer(f"\n{title}\n")
    for f in frontiers:
        rate = f["decode_tokens_per_s"]
        width = min(BAR, output.width() - 20) if terminal.out.is_terminal else BAR
        output.answer(f"{f['n_tokens']:>9,} {'█' * max(1, round(width * rate / most))} {rate:.4g}\n")


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
    picture = io.BytesIO()
    draw(about, frontiers).savefig(picture, format="png", dpi=120)
    with open_own(path, 0o644) as file:
        file.write(picture.getbuffer())
    output.note(f"plot: {path}")


def draw(about: dict, frontiers: list[dict]):
    """A matplotlib figure: tokens/s, and the time of a decoded token by part, over the context."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    speed, time = figure.subplots(1, 2)
    note = labels(about)
    model = "nano" if about["model"] == str(NANO) else Path(about["model"]).name
    others = max(f.get("others", 0.0) for f in frontiers)
    notes = [f"synthetic: {note}"] if note else []
    notes += [f"in doubt: other programs used {others:.0%} of the processors"] if others > MOST else []
    figure.suptitle("\n".join([f"{model}, {about['isa']}, {about['threads']} threads", *notes]), fontsize=10)
    x = [f["n_tokens"] for f in frontiers]
    speed.plot(x, [f["decode_tokens_per_s"] for f in frontiers], "o-", color="black", label="decode")
    speed.plot(x, [f["prefill_tokens_per_s"] for f in frontiers], "s--", color="0.4", label="prefill")
    if frontiers[0]["whole"]:
        estimates = [f["whole"]["decode_tokens_per_s"] for f in frontiers]
        of_all = f"decode, estimate for {frontiers[0]['whole']['layers']} layers"
        speed.plot(x, estimates, "^:", color="0.2", label=of_all)
    speed.set(xscale="log", yscale="log", xlabel="tokens of context", ylabel="tokens/s", title="speed")
    speed.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    speed.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    speed.yaxis.set_minor_formatter(NullFormatter())
    shares = stacked(frontiers)
    areas = time.stackplot(
        x, list(shares.values()), labels=list(shares), colors=SHADES, edgecolor="black", linewidth=0.4
    )
    for area, hatch in zip(areas, HATCHES):
        area.set_hatch(hatch)
    time.set(xscale="log", xlabel="tokens of context", ylabel="ms", title="time of a decoded token", ylim=(0, None))
    for axes in (speed, time):
        axes.set_xticks(x, [f"{n:,}" for n in x], fontsize=8)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    return figure


def stacked(frontiers: list[dict]) -> dict[str, list[float]]:
    """ms of a decoded token by part, at every frontier, whose sum is the token's: with what is in no part as `other`.
    Parts are measured under a clock, which takes time; where they exceed the token they are scaled down to it."""
    columns = []
    for f in frontiers:
        whole, parts = 1 / f["decode_tokens_per_s"], [f["parts"][name]["seconds"] for name in PARTS]
        scale = min(1.0, whole / sum(parts)) if sum(parts) else 1.0
        columns.append([1e3 * scale * s for s in parts] + [1e3 * max(0.0, whole - scale * sum(parts))])
    return dict(zip((*PARTS, "other"), map(list, zip(*columns))))
