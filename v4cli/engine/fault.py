"""Why a step failed: where values that are not finite came from, which is found when it is too late to go on, so it may
take its time; and devices that fail."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from v4kernels.api import DeviceError

from v4cli.errors import ModelError, ResourceError
from v4cli.model.state import State
from v4cli.store.sources import Model
from v4cli.store.store import Store, open_model

if TYPE_CHECKING:
    from v4cli.engine.engine import Engine


class _Found(Exception):
    """The name of a sublayer."""


@contextmanager
def failures_told() -> Iterator[None]:
    """Within: a device that fails is a ResourceError."""
    try:
        yield
    except DeviceError as error:
        raise ResourceError(str(error), "v4 doctor tells about GPUs; --backend cpu does without") from None


def fault(engine: "Engine", tokens: Sequence[int], state: State) -> ModelError:
    """The error that names the first layer whose result for `tokens` after `state` is not finite, and a tensor of it
    that is not, if there is one. Advances the state."""
    place, ops = "head", engine.model.ops

    def watch(name: str, result: Any) -> None:
        if not ops.finite(result):
            raise _Found(name)

    try:
        engine.model.forward([(tokens, state)], watch)
    except _Found as found:
        place = str(found)
    try:
        checkpoint = open_model(engine.path)
        tensor = _not_finite(checkpoint, place)
    except ModelError as damaged:  # not what was loaded any more
        return ModelError(f"{engine.path}: the result of {place} is not finite, and {damaged}", damaged.hint)
    if tensor is None:
        why = "though its weights are: they suit no model of this config, or were changed while in use"
        message = f"{engine.path}: the result of {place} is not finite, {why}"
    else:
        file = checkpoint.places[tensor].path
        message = f"{file}: tensor {tensor} holds values that are not finite, and so are those of {place}"
    hint = f"v4 verify {engine.path} tells what is damaged" if isinstance(checkpoint, Store) else "get its files again"
    return ModelError(message, hint)


def _not_finite(checkpoint: Model, place: str) -> str | None:
    """The first tensor of a sublayer, of the hyper-connection and norm before it too, that is not finite."""
    at, _, part = place.rpartition(".")
    wanted: tuple[str, ...]
    if part == "head":
        wanted = ("norm.", "head.", "hc_head_")
    elif part == "embed":
        wanted = ("embed.",)
    else:
        wanted = (f"{at}.{part}.", f"{at}.{part}_norm.", f"{at}.hc_{part}_")
    names = [name for name in checkpoint.places if name.startswith(wanted)]
    return next((name for name in names if not checkpoint.all_finite(name)), None)
