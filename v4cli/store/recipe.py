"""Which tensors are kept and which are quantized, as data: class of tensor -> format, one table per `--quant` name.

Formats: `keep` (official bytes, untouched), `int8` and `int4` (symmetric, one BF16 scale per 32 inputs).
"""

GROUP = 32  # inputs per scale of int8 and int4: that of the activations they are multiplied with

# Experts are FP4 in the official checkpoint; integer 4-bit formats lose quality on them (spec 7.17), so they stay.
RECIPES = {
    "native": {"experts": "keep", "linear": "int8", "embed": "int8", "head": "int8", "other": "keep"},
    "q4": {"experts": "keep", "linear": "int4", "embed": "int8", "head": "int4", "other": "keep"},
}

BITS = {"int8": 8 + 16 / GROUP, "int4": 4 + 16 / GROUP}  # per value, scale included


def tensor_class(name: str, dtype: str) -> str:
    """Class of an official weight: experts, linear (FP8 matrices), embed, head, or other (norms, routers,
    compressors, hyper-connections, token-to-expert tables)."""
    if ".ffn.experts." in name:
        return "experts"
    if dtype == "F8_E4M3":
        return "linear"
    if name in ("embed.weight", "head.weight"):
        return name.removesuffix(".weight")
    return "other"


def format_of(quant: str, name: str, dtype: str, n_inputs: int) -> str:
    """Format of one official weight under a recipe; rows that are not whole groups are kept as they are."""
    chosen = RECIPES[quant][tensor_class(name, dtype)]
    return chosen if n_inputs % GROUP == 0 else "keep"
