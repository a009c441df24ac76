"""The noise floor of a divergence: what a change that carries no information does.

The engine gives the same bits for every chunk, thread, tier and company of other sessions (part `state` shows it), so
a model against itself is at 0, and that says nothing of how easily its output moves. So the same weights are measured
once more after a nudge that no format could be blamed for: every weight of every norm, which all recipes keep as they
are, is moved at random by at most half a step of BF16, the precision that official weights are known to.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from v4cli.engine.engine import Engine

STEP = 2.0**-8  # of BF16, relative, at its largest


@contextmanager
def nudged(engine: Engine, seed: int) -> Iterator[None]:
    """Within: the engine's norms are moved. Nothing that is computed may be kept for other engines."""
    rng, before = np.random.default_rng(seed), []
    try:
        for norm in _norms(engine.model.ops.tree):
            before.append((norm, norm.copy()))
            norm *= (1 + STEP * (rng.random(norm.shape) - 0.5)).astype(norm.dtype)
        yield
    finally:
        for norm, values in before:
            norm[...] = values


def can_nudge(engine: Engine) -> bool:
    """Whether its norms are in memory of this process, where they can be moved."""
    return engine.placed is None and hasattr(engine.model.ops, "tree")


def _norms(tree) -> Iterator[np.ndarray]:
    """The weights of all norms, as arrays that share their memory."""
    for layer in tree.layers:
        attn = layer.attn
        keys = attn.indexer.compressor if attn.indexer is not None else None
        compressors = [part.norm for part in (attn.compressor, keys) if part is not None]
        for norm in (layer.hc_attn.norm, attn.q_norm, attn.kv_norm, *compressors, layer.hc_ffn.norm):
            yield _array(norm)
    yield _array(tree.hc_head.norm)


def _array(norm) -> np.ndarray:
    return norm if isinstance(norm, np.ndarray) else norm.numpy()
