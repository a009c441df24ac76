"""`v4 bench --ctx`: what a token costs as the context grows."""

import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from v4cli import paths, streams
from v4cli.cli import bench, bench_output, output, progress
from v4cli.cli.output import parse_tokens
from v4cli.errors import Interrupted, ResourceError, UsageError

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
    fill = request.fill or FILLS[0]
    if fill not in FILLS:
        raise UsageError(f"no fill {fill!r}; choose from {', '.join(FILLS)}")
    if request.plot:
        bench_output.check_plot(request.plot)
    engine, quant = bench.open_engine(request.model, request.synthetic)
    from v4kernels import native

    from v4cli.bench import context
    from v4cli.bench.synthetic import shape
    from v4cli.plan import cost

    whole = shape(request.synthetic.shape) if request.synthetic else engine.config
    tokenizer = None
    if engine.path == paths.NANO and fill == "prefill":
        from v4cli.chat.tokenizer import Tokenizer

        tokenizer = Tokenizer.from_file(engine.path / "tokenizer.json")
    plan = context.Plan(frontiers, fill == "synthetic", request.tokens, quant, whole, request.kv_dir, tokenizer)
    plan.check()
    _check_memory(cost.kv_bytes(engine.config, frontiers[-1]).total, request.kv_dir)
    about = {
        "model": str(engine.path), "weights": "random" if request.synthetic else "stored",
        "cache": "random entries" if plan.synthetic_fill else "prefilled", "backend": engine.model.ops.name,
        "isa": native.isa(), "threads": native.threads(), "kv_dir": str(request.kv_dir or ""),
        "tokens": request.tokens,
    }  # fmt: skip
    output.note(f"measuring at {', '.join(f'{n:,}' for n in frontiers)} tokens; leave the machine alone meanwhile")
    done = []
    stopped = True
    with suppress(KeyboardInterrupt):
        for frontier in context.measure(engine, plan, progress.Prefill):
            done.append(frontier.to_dict())
            rate = f"{frontier.decode_tokens_per_s:.4g} tokens/s decoded, {frontier.retention:.0%} of the first"
            output.note(f"{frontier.n_tokens:,} tokens: {rate}")
        stopped = False
    if stopped and streams.live(sys.stderr):
        output.note("")  # behind the progress of a prefill
    if done:
        bench_output.STYLES[request.style](about, done)
        if request.plot:
            bench_output.save_plot(about, done, request.plot)
    if stopped:
        raise Interrupted(f"interrupted after {len(done)} of {len(frontiers)} frontiers")


def _check_memory(kv_bytes: int, kv_dir: Path | None) -> None:
    import psutil

    free = psutil.virtual_memory().available
    need = MARGIN + (0 if kv_dir else kv_bytes)
    if need > free:
        hint = "" if kv_dir else "--kv-dir keeps the cache in a file"
        raise ResourceError(f"the cache and its probes take {output.size(need)}, {output.size(free)} are free", hint)
