"""What a store's weights were measured to be worth (v4 eval), in its manifest: bound to every byte of them.

`measured` there has `weights`, the digest of the checksums of all parts, and by part of v4 eval its figures, with what
they were measured by. Where a part has been made anew since, they are those of other weights and count for nothing.
"""

import hashlib
import json
from pathlib import Path

from v4cli.errors import ModelError
from v4cli.store.store import Manifest

NOT_MEASURED = "not measured"


def weights_of(manifest: Manifest) -> str:
    """Digest of the checksums of all weights."""
    sums = {name: record["sha256"] for name, record in manifest.files.items() if name.endswith(".safetensors")}
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def measured(manifest: Manifest | None) -> dict[str, dict]:
    """Figures by part, of these very weights; empty if there are none."""
    said = manifest.measured if manifest is not None else {}
    if manifest is None or said.get("weights") != weights_of(manifest):
        return {}
    figures = {part: about for part, about in said.items() if isinstance(about, dict)}
    try:
        tag(figures)
    except (KeyError, TypeError, ValueError, AttributeError):  # a manifest of others may say anything
        return {}
    return figures


def note(folder: Path, weights: str, figures: dict[str, dict]) -> None:
    """Put figures of some parts, measured of weights with this digest, into the manifest; those of others stay, and
    those of a full measurement where these are of a quick one.

    ModelError if the store is being made anew, or has been since. OSError if it cannot be written.
    """
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder.parent / f".{folder.name}.lock", timeout=0):
            manifest = Manifest.load(folder)
            if weights_of(manifest) != weights:
                raise ModelError(f"{folder}: its weights changed while they were measured", "v4 eval measures them")
            before = measured(manifest)
            better = {part for part, about in before.items() if about.get("suite") == "full"}
            new = {part: about for part, about in figures.items() if about["suite"] == "full" or part not in better}
            manifest.measured = {"weights": weights, **before, **new}
            manifest.save(folder)
    except Timeout:
        raise ModelError(f"{folder.name}: a pull of it is running", "v4 eval notes its figures after that") from None


def tag(figures: dict[str, dict]) -> str:
    """For people, in a line."""
    said = []
    if at := _longest(figures.get("kld")):
        length, kld = at
        floor = f" (noise {_nats(kld['floor']['value'])})" if "floor" in kld else ""
        said.append(f"KLD {_nats(kld['mean']['value'])}{floor} at {length:,} tokens")
        said.append(f"same top token {kld['top1']['value']:.1%}")
    if at := _longest(figures.get("ppl")):
        length, ppl = at
        change = f" ({ppl['ratio']['value'] - 1:+.1%})" if "ratio" in ppl else ""
        said.append(f"perplexity {ppl['perplexity']['value']:.4g}{change}")
    for part, key in (("tools", "exact"), ("needle", "right"), ("code", "right")):
        if part in figures:
            said.append(f"{part} {figures[part][key]['value']:.0%} of {figures[part][key]['n']}")
    if (state := figures.get("state")) and state["equal"] < state["checks"]:
        said.append(f"state DIFFERS in {state['checks'] - state['equal']} of {state['checks']} ways")
    return ", ".join(said) or NOT_MEASURED


def short(figures: dict[str, dict]) -> str:
    """The same in a cell."""
    at = _longest(figures.get("kld"))
    return f"KLD {_nats(at[1]['mean']['value'])}" if at else "measured" if figures else NOT_MEASURED


def _nats(value: float) -> str:
    return f"{value:.2g}"


def _longest(figures: dict | None) -> tuple[int, dict] | None:
    """Of figures by length, those at the longest."""
    if not figures or not figures.get("lengths"):
        return None
    length = max(figures["lengths"], key=int)
    return int(length), figures["lengths"][length]
