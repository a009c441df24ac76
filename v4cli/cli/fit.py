"""`v4 quantize --fit SIZE`: what of each format's damage was measured, what was chosen by it, and a table of that."""

from pathlib import Path

from v4cli.cli import output
from v4cli.cli.progress import Bytes
from v4cli.errors import UsageError
from v4cli.plan.fit import MATRICES, OFFICIAL, Choice, candidates, fit
from v4cli.plan.memory import CONTEXT
from v4cli.store.calibration import Calibration
from v4cli.store.recipe import Named


def fitted(source: Path, dest: Path, size: str, calibration: Calibration | None = None) -> tuple[Named, dict | None]:
    """The recipe as good as fits, and what there is to tell about it; nothing where the store was begun by it and goes
    on. With a calibration, damage counts where inputs and experts matter. UsageError, ModelError, ResourceError."""
    from v4cli.pull.damage import alike, measure, sample_bytes
    from v4cli.pull.sizes import open_manifest
    from v4cli.store.checkpoint import Checkpoint

    ram, name, begun = output.parse_size(size, "--fit"), f"fit-{size}", open_manifest(dest)
    if begun is not None:
        if begun.quant != name or begun.named is None:
            raise UsageError(f"{dest.name} is {begun.quant}, not {name}", "choose another folder")
        return begun.named, None
    checkpoint = Checkpoint.open(source)
    places, config = checkpoint.places, checkpoint.config
    if calibration is not None:
        calibration.check(config)
    importance = alike if calibration is None else calibration.importance
    with Bytes(f"what formats do to {source.name}", sample_bytes(places, config)) as bar:
        measured = measure(places, config, candidates()[:-1], importance, bar.advance)
    damage = {key: {**errors, OFFICIAL: 0.0} for key, errors in measured.items()}
    choice = fit(damage, config, ram)
    return Named(name, choice.rules, f"as good as fits in {size}"), _about(choice, damage, ram)


def _about(choice: Choice, damage: dict, ram: int) -> dict:
    """What was chosen, as data."""
    needs = choice.needs
    groups = []
    for layers, formats in choice.groups:
        errors = [[damage[layer, w][form] for layer in layers] for w, form in zip(MATRICES, formats)]
        groups.append(
            {
                "layers": [layers[0], layers[-1]],
                "formats": dict(zip(MATRICES, formats)),
                "errors": {w: (sum(each) / len(each)) ** 0.5 for w, each in zip(MATRICES, errors)},
            }
        )
    return {
        "ram": ram,
        "needs_ram": choice.ram,
        "context_tokens": CONTEXT,
        "expert_bytes_per_token": needs.experts_per_token * needs.expert,
        "groups": groups,
    }


def show(about: dict) -> None:
    """The table."""
    rows = [("LAYERS", *(f"{w} (ERROR)" for w in MATRICES))]
    for group in about["groups"]:
        first, last = group["layers"]
        cells = (f"{group['formats'][w]} ({group['errors'][w]:.1%})" for w in MATRICES)
        rows.append((str(first) if first == last else f"{first}-{last}", *cells))
    output.table(rows)
    output.paragraph(
        f"experts: {output.size(about['expert_bytes_per_token'])} a token; all in memory within "
        f"{output.size(about['needs_ram'])}, {about['context_tokens']:,} tokens of context included\n"
        "error: root mean square, relative, measured on a sample; quality: not measured"
    )
