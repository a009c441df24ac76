"""The commands of `v4 bench`."""

from pathlib import Path
from typing import Annotated

import typer

from v4cli.cli.output import parse_size
from v4cli.cli.parameters import Chunk, Gpu, Json, KvHost, Model, Typer
from v4cli.errors import UsageError

bench = Typer(help="Measure speed.", no_args_is_help=False)


@bench.callback(invoke_without_command=True)
def bench_speed(
    context: typer.Context,
    model: Model,
    synthetic: Annotated[str | None, typer.Option(help="Random weights of this shape instead: flash, pro.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Only its first layers.")] = None,
    experts: Annotated[
        int | None, typer.Option(min=1, help="Only so many experts in a layer; a token uses as many.")
    ] = None,
    quant: Annotated[str, typer.Option(help="Recipe of the random weights: native, q4, q3, mix, q2.")] = "native",
    prompt: Annotated[int | None, typer.Option(min=1, help="Tokens to prefill. Default: 512.")] = None,
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, help="Tokens to decode.")] = 16,
    ctx: Annotated[
        str | None,
        typer.Option(metavar="TOKENS", help="Measure up to this context instead; k is 1,000, M 1,000,000: 64k, 1M."),
    ] = None,
    frontiers: Annotated[
        str | None, typer.Option(help="With --ctx: where to measure. Default: 4k,16k,64k,256k,1M as far as they go.")
    ] = None,
    fill: Annotated[
        str | None,
        typer.Option(help="With --ctx: prefill (random tokens; default) or synthetic (random cache entries)."),
    ] = None,
    kv_dir: Annotated[Path | None, typer.Option(help="With --ctx: keep the cache in a file in this folder.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="With --ctx: draw this too (needs v4cli[bench]).")
    ] = None,
    ram: Annotated[
        str | None, typer.Option(help="In so much memory, like 6G; experts that do not fit are read.")
    ] = None,
    sessions: Annotated[
        str | None,
        typer.Option(metavar="NUMBERS", help="So many sessions that decode at the same time instead, like 1,2,4,8."),
    ] = None,
    drafts: Annotated[
        str | None,
        typer.Option(
            metavar="WHICH",
            help="What guessed tokens give instead, by auto, ngram, model or off, for kinds of answers; of synthetic "
            "weights, by how many guesses are right.",
        ),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --ram: note there which experts the decoded tokens used.")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="triton (a GPU) or cpu. Default: what v4 run takes; of random weights, cpu."),
    ] = None,
    number: Gpu = None,
    vram: Annotated[str | None, typer.Option(help="With a GPU: memory of it to use, like 20G.")] = None,
    chunk: Chunk = None,
    kv_host: KvHost = False,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A.json B.json", help="Compare two outputs of --json instead.")
    ] = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, names in the first line.")] = False,
) -> None:
    """Tokens per second, bytes per token and the share of this machine's ceilings reached; with --ctx, over a growing
    context. On a GPU, where experts were found and how long was waited for them."""
    if context.invoked_subcommand is not None:
        return
    if compare is not None:
        from v4cli.cli.bench_compare import compare as compared

        compared(*compare)
        return
    from v4cli.cli.bench import Synthetic, bench_model, on_a_card

    style = "json" if as_json else "csv" if as_csv else "text"
    others = {"--synthetic": synthetic, "--ctx": ctx, "--sessions": sessions, "--trace": trace}
    if on_a_card(backend, number, any(value is not None for value in (*others.values(), ram))):
        from v4cli.cli.bench_card import CardRequest, bench_on_card
        from v4cli.engine.gpu import OnCard

        _refuse(others, "is for the cpu backend (make gpu-check measures random weights on a GPU)")
        n_bytes = None if vram is None else parse_size(vram, "--vram")
        on_card = OnCard(number or 0, n_bytes, chunk, kv_host)
        bench_on_card(CardRequest(model, ram, on_card, prompt or 512, tokens, style))
        return
    _refuse({"--gpu": number, "--vram": vram, "--chunk": chunk, "--kv-host": kv_host or None}, "needs --backend triton")
    weights = Synthetic.of(synthetic, layers, experts, quant)
    if drafts is not None:
        from v4cli.cli.bench_drafts import bench_drafts

        _refuse({"--ctx": ctx, "--trace": trace, "--sessions": sessions}, "and --drafts exclude each other")
        bench_drafts(model, weights, ram, drafts, prompt or 64, tokens, style)
    elif sessions is not None:
        from v4cli.cli.bench import bench_sessions

        _refuse({"--ctx": ctx, "--trace": trace}, "and --sessions exclude each other")
        bench_sessions(model, weights, ram, sessions, prompt or 64, tokens, style)
    elif ram is not None:
        from v4cli.cli.bench_ram import bench_ram

        _refuse({"--synthetic": synthetic, "--ctx": ctx}, "and --ram exclude each other")
        bench_ram(model, ram, prompt or 512, tokens, trace, style)
    elif ctx is not None:
        from v4cli.cli.bench_context import ContextRequest, bench_context

        _refuse({"--prompt": prompt}, "and --ctx exclude each other")
        bench_context(ContextRequest(ctx, frontiers, fill, kv_dir, plot, model, weights, tokens, style))
    else:
        only = {"--frontiers": frontiers, "--fill": fill, "--kv-dir": kv_dir, "--plot": plot}
        _refuse(only, "needs --ctx")
        _refuse({"--trace": trace}, "needs --ram")
        bench_model(model, weights, prompt or 512, tokens, style)


def _refuse(options: dict, why: str) -> None:
    """UsageError for the first option that was given."""
    given = next((name for name, value in options.items() if value is not None), None)
    if given:
        raise UsageError(f"{given} {why}", f"drop {given}")


@bench.command("kernels")
def bench_kernels(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; medians are printed.")] = 7,
    working_set: Annotated[int, typer.Option(min=1, help="Bytes that matrix-vector products stream.")] = 1_200_000_000,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="Threads; default: one per core.")] = None,
    isa: Annotated[str | None, typer.Option(help="ISA tier to use; v4 doctor lists them.")] = None,
    backend: Annotated[str, typer.Option(help="cpu, or triton for those of a GPU.")] = "cpu",
    number: Annotated[int | None, typer.Option("--gpu", min=0, help="Of triton: number of the card.")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="Of triton: what is not begun by then is left out. Default: 480.")
    ] = None,
) -> None:
    """Kernels at Flash shapes beside the machine's ceilings, torch and bitsandbytes, as CSV."""
    if backend not in ("cpu", "triton"):
        raise UsageError(f"there are no kernels of {backend!r} to measure", "--backend cpu or triton")
    if backend == "triton":
        from v4cli.cli.bench import bench_card

        _refuse({"--threads": threads, "--isa": isa}, "is for kernels of the CPU")
        bench_card(number or 0, seconds or 480)
        return
    from v4cli.bench.kernels import report

    _refuse({"--gpu": number, "--seconds": seconds}, "needs --backend triton")
    report(rounds, working_set, threads, isa)


@bench.command("cache")
def bench_cache(
    trace: Annotated[
        str,
        typer.Option(help="A file of v4 bench --trace; or synthetic: popular, topics, repeats; or nano, on real text."),
    ],
    slots: Annotated[str, typer.Option(help="Numbers of experts, or shares of all.")] = "5%,10%,25%,50%",
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, help="Of a trace made here.")] = 1000,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Share of requests that an expert cache would have hit, by policy, beside the optimum that knows the future."""
    from v4cli.cli.bench_ram import bench_cache as replay

    replay(trace, slots, tokens, "json" if as_json else "csv" if as_csv else "text")
