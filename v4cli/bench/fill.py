"""A context that nobody wrote: random but valid entries in a session's KV state, at the speed of memory, whichever
backend's it is.

For measuring speed and size at depths whose prefill would take hours. Entries have the form the kernels store (v4k.h):
e4m3 codes without NaN under a scale that keeps values O(1), bf16 for RoPE dims, e2m1 index keys. Entries repeat after
ENTRIES; every key is different, so that choosing among them is as hard as among real ones.
"""

import numpy as np

from v4cli.plan import cost

ENTRIES = 1 << 14
E4M3_SCALE = 119  # 2^-8: values up to 1.75
KEY_SCALE = 125  # 2^-2: index keys of about unit variance


def fill(session, n_tokens: int, seed: int = 0) -> None:
    """Put a session of packed KV state at `n_tokens`, not less than it has: random entries for the tokens between,
    random windows and tails. Token ids are 0; going back into what was filled gives other entries. ResourceError where
    the budget does not hold it."""
    session.make_room(n_tokens)
    session.state.reserve(n_tokens)  # at once, which is the least that growing takes
    rng = np.random.default_rng((seed, n_tokens))
    state, config = session.state, session.engine.config
    entries = _entries(rng, config)
    for layer, ratio in zip(state.layers, config.compress_ratios):
        step = ENTRIES * ratio
        for first in range(state.n_tokens, n_tokens, step) if step else ():
            last = min(first + step, n_tokens)
            count, kept = last // ratio - first // ratio, layer.entries(0, 0)
            layer.put(first, last, {name: _new(rng, entries, name, count, of.shape[1]) for name, of in kept.items()})
        mark = layer.mark(n_tokens)
        tails = {name: rng.standard_normal(of.shape, np.float32) for name, of in mark.items() if name != "window"}
        layer.restore(tails | {"window": entries[: len(mark["window"])]}, n_tokens)
    session.tokens.extend([0] * (n_tokens - len(session.tokens)))
    state.n_tokens = n_tokens


def _new(rng, entries, name: str, count: int, width: int) -> np.ndarray:
    """(count, width), at most ENTRIES."""
    if name == "main.entries":
        return entries[:count]
    return np.full((count, width), KEY_SCALE, np.uint8) if name == "index.scales" else _bytes(rng, count, width)


def _entries(rng, config) -> np.ndarray:
    """(ENTRIES, entry bytes): KV entries."""
    rope = config.qk_rope_head_dim
    plain = config.head_dim - rope
    held = _bytes(rng, ENTRIES, cost.entry_bytes(config)[0])
    codes = held[:, :plain]
    codes[codes & 0x7F == 0x7F] = 0  # NaN
    turned = held[:, plain : plain + 2 * rope]
    turned[:, 1::2] = turned[:, 1::2] & 0x80 | 0x3F  # bf16, low byte first: 0.5 to 2, either sign
    held[:, plain + 2 * rope :] = E4M3_SCALE
    return held


def _bytes(rng, rows: int, width: int) -> np.ndarray:
    """(rows, width): random bytes."""
    count = rows * width
    return rng.bit_generator.random_raw(-(-count // 8)).view(np.uint8)[:count].reshape(rows, width)
