"""`v4 plan MODEL --cluster 4xH100`: whether vLLM or SGLang can serve a model there, and what to type."""

from v4cli.cli import output
from v4cli.cli.models import AS_OFFICIAL, Subject
from v4cli.errors import ResourceError, UsageError
from v4cli.plan.budget import CONTEXT
from v4cli.plan.clusters import COUNTS, WORK, Cluster, Fit, fit, named, sglang_command, vllm_command


def plan_cluster(model: str, cluster: str, ctx: str | None, sessions: int, as_json: bool) -> None:
    """Print the table and the commands. ResourceError (exit 4) if it does not fit."""
    asked, subject = named(cluster), Subject.find(model)
    config, longest = subject.config, subject.config.max_position_embeddings
    n_tokens = min(CONTEXT if ctx is None else output.parse_tokens(ctx, "--ctx"), longest)
    n_bytes = subject.needs(AS_OFFICIAL)[1]
    own = subject.source in ("embedded", "folder")
    repository = str(subject.folder) if own else subject.source.partition("@")[0]
    its = fit(asked, config, n_bytes, n_tokens, sessions)
    others = [
        fit(Cluster(n, asked.gpu), config, n_bytes, n_tokens, sessions) for n in COUNTS if n != asked.count
    ]  # fmt: skip
    commands = {
        "vllm": vllm_command(its, repository, n_tokens, sessions),
        "sglang": sglang_command(its, repository, n_tokens, sessions),
    }
    if as_json:
        rows = [_about(one) for one in (its, *others)]
        about = {"model": model, "repository": repository, "context_tokens": n_tokens, "sessions": sessions}
        output.json_page(about | {"weights": n_bytes, "cluster": rows[0], "others": rows[1:], "commands": commands})
    else:
        _print(model, its, others, n_tokens, sessions, commands)
    if its.left < 0:
        raise _does_not_fit(model, its, others)


def refuse_beside(option: str, others: dict[str, object]) -> None:
    """UsageError for options that say nothing of a cluster."""
    told = next((name for name, value in others.items() if value is not None), None)
    if told:
        raise UsageError(f"{told} and {option} exclude each other", f"drop {told}")


def _about(its: Fit) -> dict:
    """Bytes of one GPU."""
    return {
        "name": its.cluster.name, "fits": its.left >= 0, "gpus": its.cluster.count, "parallel": its.parallel,
        "nodes": its.cluster.nodes, "vram": its.cluster.gpu.vram, "usable": its.usable, "weights": its.weights,
        "kv": its.kv, "kv_of_one_session": its.kv_of_one, "left": its.left, "most_sessions": its.most_sessions,
    }  # fmt: skip


def _print(model: str, its: Fit, others: list[Fit], n_tokens: int, sessions: int, commands: dict[str, str]) -> None:
    each = f"{sessions} session{'s' if sessions > 1 else ''} of {n_tokens:,} tokens of context"
    output.answer(f"{model}, official weights; {each}; of each GPU:\n\n")
    rows = [("GPUS", "HAVE", "MAY USE", "WEIGHTS", "KV", "LEFT", "SESSIONS", "")]
    for one in sorted((its, *others), key=lambda one: one.cluster.count):
        sizes = (output.size(n) for n in (one.cluster.gpu.vram, one.usable, one.weights, one.kv))
        left = output.size(one.left) if one.left >= 0 else f"-{output.size(-one.left)}"
        says = [] if one.left >= 0 else ["does not fit"]
        says += [f"{one.cluster.nodes} machines"] if one.cluster.nodes > 1 else []
        says += [f"{one.parallel} of them used"] if one.parallel < one.cluster.count else []
        says += ["this one"] if one is its else []
        rows.append((one.cluster.name, *sizes, left, f"up to {one.most_sessions:,}", ", ".join(says)))
    output.table(rows)
    output.answer(
        f"\nassumed: weights divided evenly, KV of all sessions on each GPU, {output.size(WORK)} to work in; none of "
        "it was run\n\n"
        f"vLLM:    {commands['vllm']}\nSGLang:  {commands['sglang']}\n"
        "then:    v4 chat --engine http://HOST:8000 (SGLang: 30000)\n"
    )


def _does_not_fit(model: str, its: Fit, others: list[Fit]) -> ResourceError:
    ways = [one.cluster.name + " fits" for one in others if one.left >= 0][:1]
    if its.most_sessions:
        ways.append(f"--sessions {its.most_sessions} fits")
    said = f"{model} lacks {output.size(-its.left)} on each GPU of {its.cluster.name}"
    return ResourceError(said, "; ".join(ways) or "a smaller --ctx, or larger GPUs")
