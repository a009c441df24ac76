"""`v4 ls` and `v4 show`: which models there are, what they are, what they cost."""

from v4cli import paths
from v4cli.cli import output


def ls(as_json: bool) -> None:
    """The models v4 knows by name."""
    from v4cli.model.cost import parameters
    from v4cli.weights.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(paths.NANO)
    row = {
        "name": "nano",
        "parameters": parameters(checkpoint.config).total,
        "bytes": checkpoint.nbytes,
        "path": str(paths.NANO),
    }
    if as_json:
        output.json_page([row])
    else:
        size = f"{row['parameters'] / 1e6:.1f} M parameters, {output.size(row['bytes'])}"
        output.table([("nano", f"{size}, embedded"), ("FOLDER", "any official checkpoint: --model FOLDER")])


def describe(model: str) -> dict:
    """Everything `v4 show` tells, by name."""
    from v4cli.model import cost
    from v4cli.weights.checkpoint import Checkpoint

    folder = paths.model_folder(model)
    checkpoint = Checkpoint.open(folder)
    config = checkpoint.config
    counts = cost.parameters(config)
    has_mtp = any(name.startswith("mtp.") for name in checkpoint.places)
    payload = cost.payload_bytes(config, with_mtp=has_mtp)
    context = config.max_position_embeddings
    return {
        "model": model,
        "path": str(folder),
        "release": config.release,
        "quantization": "FP4 experts, FP8 dense (official)",
        "parameters": counts.total,
        "active_parameters": counts.active,
        "layers": config.num_hidden_layers,
        "bytes": {
            "experts": payload.experts,
            "dense": payload.dense,
            "embed_head": payload.embed_head,
            "mtp": payload.mtp,
            "total": payload.total,
        },
        "read_bytes_per_token": cost.read_bytes_per_token(config),
        "kv_bytes_per_token": cost.kv_bytes_per_token(config),
        "kv_bytes_at_full_context": cost.kv_bytes(config, context).total,
        "context_tokens": context,
        "source": "embedded" if model == "nano" else "folder",
    }


def show_model(model: str, as_json: bool) -> None:
    """Print the description."""
    about = describe(model)
    if as_json:
        output.json_page(about)
        return
    read = about["read_bytes_per_token"]
    parts = ", ".join(f"{name} {output.size(n)}" for name, n in about["bytes"].items() if n and name != "total")
    output.table(
        [
            ("model", f"{about['model']} ({about['source']}), prompt contract {about['release']}"),
            ("path", about["path"]),
            (
                "parameters",
                f"{about['parameters'] / 1e6:,.1f} M, {about['active_parameters'] / 1e6:,.1f} M active",
            ),
            ("quantization", about["quantization"]),
            ("on disk", f"{output.size(about['bytes']['total'])}: {parts}"),
            ("read per token", f"{output.size(sum(read.values()))} (experts {output.size(read['experts'])})"),
            ("context", f"{about['context_tokens']:,} tokens"),
            ("KV per token", f"{about['kv_bytes_per_token']:,.1f} B in the official compressed layout"),
            ("KV, full context", output.size(about["kv_bytes_at_full_context"])),
        ]
    )
