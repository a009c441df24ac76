"""`v4 bench --ctx`: what a token costs as the context grows."""

import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from v4cli import paths, streams
from v4cli.cli import bench, bench_output, output, progress
from v4cli.cli.output import parse_tokens
from v4cli.cli.progress import waiting
from v4cli.errors import Interrupted, ResourceError, UsageError
from v4cli.words import span

FRONTIERS = (4_000, 16_000, 64_000, 256_000, 1_000_000)
FILLS = ("prefill", "synthetic")
MARGIN = 2 << 30  # memory left to probes and working memory


@dataclass(frozen=True)
class ContextRequest:
    """What the command line asks for."""

    ctx: str
    frontiers: str | None
    fill: str | None
    kv_dir: Path | None
    plot: Path | None
    model: str
    synthetic: bench.Synthetic | None
    tokens: int
    style: str  # text, json or csv


def parse_frontiers(ctx: str, frontiers: str | None) -> tuple[int, ...]:
    """Ascending numbers of tokens; the last one is `ctx`."""
    last = parse_tokens(ctx, "--ctx")
    if frontiers is None:
        return (*(n for n in FRONTIERS if n < last), last)
    asked = {parse_tokens(part, "--frontiers") for part in frontiers.split(",")}
    if max(asked) > last:
        raise UsageError(f"--frontiers {max(asked):,} lies beyond --ctx {last:,}")
    return tuple(sorted(asked | {last}))


def bench_context(request: ContextRequest) -> None:
    """Measure frontier after frontier and print. Ctrl-C prints those done and exits with 130."""
    frontiers = parse_frontiers(request.ctx, request.frontiers)
    if request.fill not in (None, *FILLS):
        raise UsageError(f"no fill {request.fill!r}; choose from {', '.join(FILLS)}")
    if request.plot:
        bench_output.check_plot(request.plot)
    if request.kv_dir and not request.kv_dir.is_dir():
        raise ResourceError(f"--kv-dir {request.kv_dir}: no such folder", f"mkdir -p {request.kv_dir}")
    own = bench.config_of(request.model, request.synthetic)
    from v4cli.bench import context
    from v4cli.bench.synthetic import shape
    from v4cli.plan import cost

    whole = shape(request.synthetic.shape) if request.synthetic else own
    plan = context.Plan(frontiers, request.fill == "synthetic", request.tokens, "", whole, request.kv_dir)
    plan.check()
    _check_memory(cost.kv_bytes(own, frontiers[-1]).total, request.kv_dir)
    engine, quant = bench.open_engine(request.model, request.synthetic)
    plan = _chosen(engine, replace(plan, quant=quant), asked=request.fill is None)
    _measure(request, engine, plan)


def _chosen(engine, plan, asked: bool):
    """The plan, with the fill that the user wants once it is known how long each takes: `asked`, where it matters and
    there is someone to ask; then random entries are those of a plan of at least a chunk between frontiers."""
    from v4cli.bench.trial import Trial, context_s

    with waiting("trying how fast this is"):
        prefill, synthetic = context_s(Trial.of(engine), plan.frontiers, plan.tokens)
    taken = synthetic if plan.synthetic_fill else prefill
    ways = f"a real prefill of {plan.frontiers[-1]:,} tokens takes about {span(prefill)} here, "
    output.note(ways + f"--fill synthetic {span(synthetic)}" if asked else f"this takes about {span(taken)} here")
    if asked:
        answer = bench.answer_if_long(prefill, "p: prefill, s: synthetic, q: quit [p] ")
        plan = replace(plan, synthetic_fill=answer == "s")
        plan.check()
    if engine.path == paths.NANO and not plan.synthetic_fill:
        from v4cli.chat.tokenizer import Tokenizer

        plan = replace(plan, tokenizer=Tokenizer.from_file(engine.path / "tokenizer.json"))
    return plan


def _measure(request: ContextRequest, engine, plan) -> None:
    from v4kernels import native

    from v4cli.bench import context

    about = {
        "model": str(engine.path), "weights": "random" if request.synthetic else "stored",
        "cache": "random entries" if plan.synthetic_fill else "prefilled", "backend": engine.model.ops.name,
        "isa": native.isa(), "threads": native.threads(), "kv_dir": str(request.kv_dir or ""),
        "tokens": request.tokens,
    }  # fmt: skip
    frontiers = plan.frontiers
    output.note(f"measuring at {', '.join(f'{n:,}' for n in frontiers)} tokens; leave the machine alone meanwhile")
    done = []
    stopped = True
    with suppress(KeyboardInterrupt):
        for frontier in context.measure(engine, plan, lambda n: _Filling(engine.config, frontiers, n)):
            done.append(frontier.to_dict())
            rate = f"{frontier.decode_tokens_per_s:.4g} tokens/s decoded, {frontier.retention:.0%} of the first"
            output.note(f"{frontier.n_tokens:,} tokens: {rate}")
        stopped = False
    if done:
        bench_output.STYLES[request.style](about, done)
        if request.plot:
            bench_output.save_plot(about, done, request.plot)
    if stopped:
        raise Interrupted(f"interrupted after {len(done)} of {len(frontiers)} frontiers")


class _Filling(progress.Prefill):
    """The way to a frontier, then what is done at it."""

    def __init__(self, config, frontiers: tuple[int, ...], n_tokens: int):
        n = frontiers.index(n_tokens) + 1
        self.name = f"to {n_tokens:,} tokens ({n} of {len(frontiers)})"
        super().__init__(config, self.name)

    def __call__(self, done: int, total: int) -> None:
        super().__call__(done, total)
        if done == total and streams.live(sys.stderr):
            output.changing(f"{self.name}: decoding"[: progress.columns()])


def _check_memory(kv_bytes: int, kv_dir: Path | None) -> None:
    import psutil

    free = psutil.virtual_memory().available
    need = MARGIN + (0 if kv_dir else kv_bytes)
    if need > free:
        hint = "" if kv_dir else "--kv-dir keeps the cache in a file"
        raise ResourceError(f"the cache and its probes take {output.size(need)}, {output.size(free)} are free", hint)
