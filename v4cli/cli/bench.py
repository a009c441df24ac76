"""`v4 bench`: speed of a model beside the ceilings of this machine; `v4 bench kernels`: op by op."""

import csv
from dataclasses import dataclass

from v4cli.cli import output
from v4cli.errors import ResourceError, UsageError
from v4cli.store import library

MOST_SESSIONS = 64
MARGIN = 2 << 30  # memory left to the rest when synthetic weights are made


@dataclass(frozen=True)
class Synthetic:
    """Random weights to measure instead of a model's: a shape, as far as it is cut, and their recipe."""

    shape: str
    layers: int | None
    experts: int | None
    quant: str

    @classmethod
    def of(cls, shape: str | None, layers: int | None, experts: int | None, quant: str) -> "Synthetic | None":
        """None if no shape is asked for. UsageError for what cuts only these."""
        for option, value in (("--layers", layers), ("--experts", experts)):
            if value and not shape:
                raise UsageError(f"{option} cuts random weights only", f"add --synthetic flash, or drop {option}")
        return cls(shape, layers, experts, quant) if shape else None


def bench_model(model: str, synthetic: Synthetic | None, prompt: int, tokens: int, style: str):
    """Measure and print. `style`: text, json or csv."""
    engine, quant = open_engine(model, synthetic)
    from v4cli.bench import speed

    limit = engine.config.max_position_embeddings
    if prompt + 2 * tokens > limit:
        raise UsageError(f"--prompt and twice --tokens exceed the model's context of {limit}")
    output.note(f"measuring: {prompt} tokens of prefill, {tokens} of decode; leave the machine alone meanwhile")
    report = speed.measure(engine, quant, bool(synthetic), prompt, tokens).to_dict()
    STYLES[style](report)


def bench_sessions(
    model: str, synthetic: Synthetic | None, ram: str | None, numbers: str, prompt: int, tokens: int, style: str
) -> None:
    """Measure and print how fast several sessions decode together. `style`: text, json or csv."""
    counts = [int(number) for number in numbers.split(",") if number.strip().isdecimal()]
    if len(counts) != numbers.count(",") + 1 or not 1 <= min(counts) <= max(counts) <= MOST_SESSIONS:
        raise UsageError(f"--sessions {numbers!r} is no list of numbers up to {MOST_SESSIONS}", "--sessions 1,2,4,8")
    if synthetic and ram:
        raise UsageError("--synthetic and --ram exclude each other", "drop --ram")
    engine, _ = open_engine(model, synthetic, output.ram_budget(ram))
    from v4cli.bench import sessions

    output.note(
        f"measuring: {tokens} tokens of each of {', '.join(map(str, counts))} sessions, {sessions.ROUNDS} times"
    )
    report = sessions.measure(engine, bool(synthetic), counts, prompt, tokens)
    if style == "json":
        output.json_page(report.to_dict())
        return
    rows = [("SESSIONS", "TOKENS/S", "OF ONE")]
    rows += [(str(r.sessions), f"{r.tokens_per_s:.2f}", f"{r.of_one:.2f}") for r in report.rates]
    if style == "csv":
        csv.writer(output.Csv).writerows(rows)
    else:
        output.answer(f"{report.model}, {report.isa}, {report.threads} threads\n\n")
        output.table(rows)


def bench_card(number: int, seconds: float) -> None:
    """Measure the kernels of a GPU and print CSV; what is missing goes to stderr."""
    from v4cli.bench import gpu

    gpu.need_card(number)
    from v4cli.bench.gpu_kernels import as_table

    found = gpu.kernels(number, seconds, None, "")
    csv.writer(output.Csv).writerows(as_table(found))
    for name, why in found["missing"].items():
        output.note(f"{name}: {why}")


def open_engine(model: str, synthetic: Synthetic | None, ram: int | None = None):
    """The engine to measure, of `model` or of random weights, and the recipe of its weights."""
    from v4kernels import native

    if not native.available():
        raise UsageError(f"v4 bench measures the cpu backend, which is not available: {native.reason()}")
    from v4cli.engine.engine import Engine

    if synthetic:
        return _random(synthetic), synthetic.quant
    engine = Engine.open(library.model_folder(model), "cpu", ram=ram)
    return engine, _quant_of(engine.path)


def _random(wanted: Synthetic):
    import psutil

    from v4cli.bench import speed
    from v4cli.bench.synthetic import SHAPES, shape
    from v4cli.plan import cost
    from v4cli.store.recipe import RECIPES
    from v4cli.store.store import layout

    for what, chosen, known in (("shape", wanted.shape, SHAPES), ("recipe", wanted.quant, RECIPES)):
        if chosen not in known:
            raise UsageError(f"no {what} {chosen!r}; choose from {', '.join(known)}")
    config = shape(wanted.shape, wanted.layers, wanted.experts)
    least, most = config.num_experts_per_tok, shape(wanted.shape).n_routed_experts
    if not least <= config.n_routed_experts <= most:
        raise UsageError(f"--experts {wanted.experts}: a layer of {wanted.shape} has {most}, a token uses {least}")
    need = cost.payload_bytes(cost.stored_tensors(layout(config, wanted.quant, with_mtp=False))).total
    free = psutil.virtual_memory().available
    name = f"{wanted.shape}, {config.num_hidden_layers} layers"
    if wanted.experts:
        name += f" of {wanted.experts} experts"
    if need + MARGIN > free:
        raise ResourceError(
            f"{name} take {output.size(need)}, {output.size(free)} are free",
            "--layers takes fewer of them, --experts fewer experts of each",
        )
    output.note(f"making random weights: {name}, {output.size(need)}")
    return speed.random_engine(config, wanted.quant, f"synthetic {name}, {wanted.quant}")


def _quant_of(folder) -> str:
    """Recipe of a store; an official checkpoint is quantized as `native` when it is loaded."""
    from v4cli.store.store import Store, open_model

    opened = open_model(folder)
    return opened.manifest.quant if isinstance(opened, Store) else "native"


def _flat(report: dict) -> dict:
    flat = {}
    for key, value in report.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": part for name, part in value.items()}
        else:
            flat[key] = value
    return flat


def _csv(report: dict) -> None:
    flat, out = _flat(report), csv.writer(output.Csv)
    out.writerow(flat)
    out.writerow(flat.values())


def _text(r: dict) -> None:
    read = r["bytes_per_token"]
    label = " (random weights: only the speed means something)" if r["synthetic"] else ""
    output.answer(f"{r['model']}{label}\n{r['backend']} backend, {r['isa']}, {r['threads']} threads\n\n")
    bound = r["read_bandwidth"] * 1e9 / sum(read.values())
    rows = [("", "TOKENS", "TOKENS/S", "CEILING", "REACHED")]
    decode = f"{r['read_bandwidth']:.1f} GB/s read: {bound:.1f} tokens/s"
    rows.append(
        ("decode", str(r["decode_tokens"]), f"{r['decode_tokens_per_s']:.1f}", decode, _percent(r["decode_fraction"]))
    )
    for i, (name, rate) in enumerate(r["product_rates"].items()):
        head = ("prefill", str(r["prompt_tokens"]), f"{r['prefill_tokens_per_s']:.1f}") if i == 0 else ("", "", "")
        rows.append((*head, f"{rate:.0f} GMAC/s {name}", _percent(r["prefill_fraction"][name])))
    output.table(rows)
    output.answer(f"\nread per decoded token: {output.size(sum(read.values()))}\n")
    output.table([("", name, output.size(part)) for name, part in read.items()])
    total = sum(r["op_s_per_token"].values()) + r["python_s_per_token"]
    output.answer(f"\ntime per decoded token, clocked: {1e3 * total:.2f} ms\n")
    parts = sorted(r["op_s_per_token"].items(), key=lambda part: -part[1])
    output.table(
        [
            ("", name, f"{1e3 * s:.3f} ms", _percent(s / total))
            for name, s in (*parts, ("python", r["python_s_per_token"]))
        ]
    )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


STYLES = {"text": _text, "csv": _csv, "json": output.json_page}
