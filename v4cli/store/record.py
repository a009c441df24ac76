"""The record of formats in a manifest: which one every matrix of a store has."""

from collections.abc import Mapping

from v4kernels.formats import FORMATS, OFFICIAL, Format

from v4cli.errors import ModelError
from v4cli.model.schema import TensorSpec
from v4cli.store.recipe import EXPERTS, matrices


def recorded(formats: Mapping[str, Format]) -> dict[str, str | list[str]]:
    """Formats of matrices by name, for a manifest: the format's name by that of the matrix without `.weight`. Of a
    layer's experts, in the order of their numbers, one name if they agree, else a list: `layers.3.ffn.experts.*.w1`."""
    record: dict[str, str | list[str]] = {}
    experts: dict[str, list[str]] = {}
    for name, form in formats.items():
        if EXPERTS in name:
            experts.setdefault(_key(name), []).append(form.name)
        else:
            record[_key(name)] = form.name
    return record | {key: names if len(set(names)) > 1 else names[0] for key, names in experts.items()}


def from_record(record: Mapping[str, object], official: Mapping[str, TensorSpec]) -> dict[str, Format]:
    """What `recorded` gave. ModelError, about the first that is wrong, unless it fits these official tensors."""
    formats, known = {}, set()
    for name, spec in matrices(official).items():
        key = _key(name)
        known.add(key)
        said = record.get(key)
        if isinstance(said, list):
            number = int(name.split(".")[-3]) if EXPERTS in name else len(said)
            said = said[number] if number < len(said) else None
        form = FORMATS.get(said) if isinstance(said, str) else None
        if form is None:
            told = f"{said[:40]!r} is no number format" if isinstance(said, str) else "no number format"
            raise ModelError(f"formats: {key}: {told}")
        own = OFFICIAL[spec.dtype]
        if form is not own and not (form.packed and form.fits(own.cols(spec.shape[1]))):
            raise ModelError(f"formats: {key}: {form.name} does not fit {list(spec.shape)} of {own.name}")
        formats[name] = form
    odd = min(record.keys() - known, default=None)
    if odd is not None:
        raise ModelError(f"formats: {odd[:200]!r} is no matrix of this model")
    for key, said in record.items():
        if isinstance(said, list) and len(said) != sum(_key(name) == key for name in formats):
            raise ModelError(f"formats: {key}: {len(said)} formats for another number of experts")
    return formats


def expert_bits(record: Mapping[str, str | list[str]]) -> float | None:
    """Bits of a weight of the trunk's routed experts, on average, by a record; None if it does not say."""
    bits = []
    for key, said in record.items():
        if EXPERTS in key and key.startswith("layers."):
            each = [FORMATS[name].bits for name in ([said] if isinstance(said, str) else said) if name in FORMATS]
            bits += [sum(each) / len(each)] if each else []
    return sum(bits) / len(bits) if bits else None


def _key(name: str) -> str:
    """Name of a matrix in a manifest."""
    at, experts, rest = name.removesuffix(".weight").partition(EXPERTS)
    return f"{at}{experts}*.{rest.partition('.')[2]}" if experts else at
