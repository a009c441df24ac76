"""`v4 bench`: speed of a model beside the ceilings of this machine; `v4 bench kernels`: op by op."""

import csv
import sys
from dataclasses import dataclass

from v4cli import streams
from v4cli.cli import output
from v4cli.cli.progress import waiting
from v4cli.errors import Interrupted, ResourceError, UsageError
from v4cli.store import library
from v4cli.words import span

MOST_SESSIONS = 64
DOUBT = " ?"  # behind shares that are not reliable
MARGIN = 2 << 30  # memory left to the rest when synthetic weights are made
ASK_ABOVE_S = 60.0  # that a measurement takes


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
    limit = config_of(model, synthetic).max_position_embeddings
    if prompt + 2 * tokens > limit:
        raise UsageError(f"--prompt and twice --tokens exceed the model's context of {limit:,}")
    engine, quant = open_engine(model, synthetic)
    from v4cli.bench import speed
    from v4cli.bench.trial import CHUNK, Trial, speed_s

    with waiting("trying how fast this is"):
        takes = speed_s(Trial.of(engine, min(prompt, CHUNK)), prompt, tokens)
    agree(takes, "--prompt and -n take fewer tokens")
    output.note(f"measuring: {prompt} tokens of prefill, {tokens} of decode; leave the machine alone meanwhile")
    with waiting("measuring"):
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
    from v4cli.bench.trial import CHUNK, Trial, sessions_s

    with waiting("trying how fast this is"):
        takes = sessions_s(Trial.of(engine, min(prompt, CHUNK)), counts, prompt, tokens, sessions.ROUNDS)
    agree(takes, "--prompt and -n take fewer tokens")
    output.note(
        f"measuring: {tokens} tokens of each of {', '.join(map(str, counts))} sessions, {sessions.ROUNDS} times"
    )
    with waiting("measuring"):
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


def agree(seconds: float, less: str, words: str = "about") -> None:
    """Say how long it takes here; where that is long, ask whoever is there. `less`: what would take less time.
    Interrupted if they would rather not."""
    output.note(f"this takes {words} {span(max(seconds, 1.0))} here" + (f"; {less}" if seconds > ASK_ABOVE_S else ""))
    answer_if_long(seconds, "Enter: go on, q: quit ")


def answer_if_long(seconds: float, question: str) -> str:
    """The first letter of the answer to a question about what takes so long; empty where it is not worth asking, or
    nobody is there. Interrupted if it is q."""
    if seconds <= ASK_ABOVE_S or not sys.stdin.isatty() or not streams.is_screen(sys.stderr):
        return ""
    output.note(question, end="")
    answer = sys.stdin.readline().strip().lower()[:1]
    if answer == "q":
        raise Interrupted("nothing was measured")
    return answer


def on_a_card(backend: str | None, number: int | None, is_special: bool) -> bool:
    """Whether a GPU is measured; `is_special`: something is asked for that is the CPU's unless told. UsageError."""
    if backend not in (None, "cpu", "triton"):
        raise UsageError(f"no speed of {backend!r} is measured", "--backend cpu or triton")
    if backend is None and is_special:
        return False
    from v4cli.engine import gpu

    return gpu.chosen(backend, number) == "triton"


def bench_card(number: int, seconds: float) -> None:
    """Measure the kernels of a GPU and print CSV."""
    from v4cli.bench import gpu

    gpu.need_card(number)
    from v4cli.bench.gpu_kernels import as_table

    found = gpu.kernels(number, seconds, None, "")
    csv.writer(output.Csv).writerows(as_table(found))


def config_of(model: str, synthetic: Synthetic | None):
    """The config of what is to be measured, without loading it. UsageError for random weights that there cannot be."""
    from v4cli.bench.synthetic import SHAPES, shape
    from v4cli.store.recipe import RECIPES
    from v4cli.store.store import open_model

    if synthetic is None:
        return open_model(library.model_folder(model)).config
    for what, chosen, known in (("shape", synthetic.shape, SHAPES), ("recipe", synthetic.quant, RECIPES)):
        if chosen not in known:
            raise UsageError(f"no {what} {chosen!r}; choose from {', '.join(known)}")
    n_layers = shape(synthetic.shape).num_hidden_layers
    if (synthetic.layers or 0) > n_layers:
        raise UsageError(f"--layers {synthetic.layers}: {synthetic.shape} has {n_layers}", f"--layers {n_layers}")
    config = shape(synthetic.shape, synthetic.layers, synthetic.experts)
    least, most = config.num_experts_per_tok, shape(synthetic.shape).n_routed_experts
    if not least <= config.n_routed_experts <= most:
        raise UsageError(
            f"--experts {synthetic.experts}: a layer of {synthetic.shape} has {most}, a token uses {least}"
        )
    return config


def open_engine(model: str, synthetic: Synthetic | None, ram: int | None = None):
    """The engine to measure, of `model` or of random weights, and the recipe of its weights."""
    from v4kernels import native

    if not native.available():
        raise UsageError(f"v4 bench measures the cpu backend, which is not available: {native.reason()}")
    from v4cli.engine.engine import Engine

    if synthetic:
        return _random(synthetic), synthetic.quant
    with waiting(f"loading {model}"):
        engine = Engine.open(library.model_folder(model), "cpu", ram=ram)
    return engine, _quant_of(engine.path)


def _random(wanted: Synthetic):
    import psutil

    from v4cli.bench import speed
    from v4cli.plan import cost
    from v4cli.store.recipe import RECIPES

    config = config_of("", wanted)
    need = sum(cost.held_by_part(cost.needs_of_release(config, RECIPES[wanted.quant].rules)).values())
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
    with waiting("making them"):
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
        ("decode", str(r["decode_tokens"]), f"{r['decode_tokens_per_s']:.1f}", decode, share(r["decode_fraction"], r))
    )
    for i, (name, rate) in enumerate(r["product_rates"].items()):
        head = ("prefill", str(r["prompt_tokens"]), f"{r['prefill_tokens_per_s']:.1f}") if i == 0 else ("", "", "")
        rows.append((*head, f"{rate:.0f} GMAC/s {name}", share(r["prefill_fraction"][name], r)))
    output.table(rows)
    if in_doubt(max(r["decode_fraction"], *r["prefill_fraction"].values()), r):
        tell_doubts([r])
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


def share(fraction: float, measured: dict) -> str:
    """Of a ceiling, marked where that was measured while others computed, or is none."""
    return _percent(fraction) + (DOUBT if in_doubt(fraction, measured) else "")


def in_doubt(fraction: float, measured: dict) -> bool:
    """Whether a share of a ceiling is not reliable; `measured`: the dictionary that says what `others` used."""
    from v4cli.bench.load import MOST

    return fraction > 1 or measured.get("others", 0.0) > MOST


def tell_doubts(measured: list[dict]) -> None:
    """Say what the mark means, where it is."""
    others = max(one.get("others", 0.0) for one in measured)
    output.paragraph(
        f"\n{DOUBT.strip()} not reliable: a share above 100 %, or of a ceiling that was measured while other programs "
        f"used the processors (at most {others:.0%} of them)"
    )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


STYLES = {"text": _text, "csv": _csv, "json": output.json_page}
