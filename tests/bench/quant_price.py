"""What quantization costs: `python tests/bench/quant_price.py` writes CSV to stdout.

For nano (on held-out dialogues) and a random checkpoint (on random tokens): weight error by tensor class, and KL
divergence, perplexity and top-1 agreement of the store against the official weights, both in `exact`, at several
context lengths. A token's logits come after everything before it, so later positions show what long contexts add.
Where bitsandbytes is installed, that of `--dense nf4` over a native store too.
"""

import argparse
import csv
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
from v4kernels.reference import Reference, Weight
from v4kernels.triton import nf4

from v4cli.bench.synthetic import shape, write_synthetic
from v4cli.chat.encoding import encode_april
from v4cli.chat.tokenizer import Tokenizer
from v4cli.engine.engine import Engine
from v4cli.model.v4 import V4
from v4cli.model.weights import build
from v4cli.nano.dialogues import generate
from v4cli.paths import NANO
from v4cli.pull.hub import FolderSource
from v4cli.pull.pull import pull
from v4cli.store.library import weight_errors
from v4cli.store.recipe import RECIPES
from v4cli.store.sources import DenseSource
from v4cli.store.store import Manifest, open_model

CHUNK = 512
COLUMNS = ("model", "quant", "tokens", "kl_nats", "top1_agreement", "ppl_official", "ppl_store", "weight_errors")


class Silent:
    """Hears nothing of a pull."""

    def say(self, text: str) -> None: ...
    def plan(self, plan) -> None: ...
    def start(self, name: str, n_bytes: int, fetching: bool) -> None: ...
    def advance(self, name: str, n_bytes: int) -> None: ...
    def finish(self, name: str) -> None: ...


class Nf4Source(DenseSource):
    """A store's weights, of which some are made 4-bit normal floats, as `--dense nf4` does when it loads them."""

    def __init__(self, store, errors: list[float]):
        """`errors`: squares of errors and of values are added to its two numbers."""
        super().__init__(store, lazy=False)
        self.errors = errors

    def weight(self, name: str) -> Weight:
        weight = super().weight(name)
        if not nf4.about(name, self.checkpoint.form(name).name):
            return weight
        exact = weight.dense()
        rounded = nf4.Nf4.of(exact).values()
        self.errors[0] += (rounded - exact).square().sum().item()
        self.errors[1] += exact.square().sum().item()
        return Weight(weight.kind, rounded)


def with_nf4(folder: Path) -> tuple[Engine, str]:
    """A store whose dense weights are nf4, in `exact`, and the error of that step."""
    store, errors = open_model(folder), [0.0, 0.0]
    model = V4(store.config, Reference("exact").bind(build(store.config, Nf4Source(store, errors))))
    return Engine(model, folder, 0.0), f"nf4={(errors[0] / errors[1]) ** 0.5:.4f}"


def stores(folder: Path, quant: str):
    """Yields (name, engine, weight errors) of a store and, if it is native, with nf4 where that can be made."""
    errors = " ".join(f"{n}={e:.4f}" for n, e in weight_errors(Manifest.load(folder)).items())
    yield quant, Engine.open(folder, "reference"), errors
    if quant != "native":
        return
    try:
        nf4.library()
    except ValueError as missing:
        print(missing, file=sys.stderr)
    else:
        engine, error = with_nf4(folder)
        yield f"{quant}, dense nf4", engine, f"{errors} {error}"


def nano_tokens(count: int) -> list[int]:
    """Held-out dialogues, one after the other."""
    tokenizer, rng, ids = Tokenizer.from_file(NANO / "tokenizer.json"), random.Random(5), []
    while len(ids) < count:
        dialogue = generate(rng, "heldout")
        ids += tokenizer.encode_prompt(encode_april(dialogue.messages, thinking_mode=dialogue.thinking_mode))
    return ids[:count]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def compare(official: Engine, store: Engine, ids: list[int], frontiers: list[int]):
    """Yields (tokens, mean KL, top-1 agreement, perplexity of either) over all positions up to each frontier."""
    sessions = official.session(), store.session()
    kl, agree, nll = [], [], ([], [])
    for i in range(0, len(ids), CHUNK):
        a, b = (log_softmax(s.feed(ids[i : i + CHUNK], all_logits=True)) for s in sessions)
        kl += (np.exp(a) * (a - b)).sum(-1).tolist()
        agree += (a.argmax(-1) == b.argmax(-1)).tolist()
        targets = ids[i + 1 : i + 1 + len(a)]
        for scores, into in zip((a, b), nll):
            into += (-scores[np.arange(len(targets)), targets]).tolist()
        done = min(i + CHUNK, len(ids))
        if done in frontiers:
            yield done, np.mean(kl), np.mean(agree), *(np.exp(np.mean(part)) for part in nll)


def main() -> None:
    parser = argparse.ArgumentParser(description="price of quantization, as CSV")
    parser.add_argument("--frontiers", default="4096,16384")
    args = parser.parse_args()
    frontiers = [int(n) for n in args.frontiers.split(",")]
    out = csv.writer(sys.stdout)
    out.writerow(COLUMNS)
    with tempfile.TemporaryDirectory() as scratch:
        random_model = write_synthetic(Path(scratch) / "random", shape("small"))
        rng = random.Random(1)
        models = {
            "nano": (NANO, nano_tokens(max(frontiers))),
            "random": (random_model, [rng.randrange(512) for _ in range(max(frontiers))]),
        }
        for name, (source, ids) in models.items():
            for quant in RECIPES:
                folder = Path(scratch) / f"{name}-{quant}"
                pull(FolderSource(source), folder, RECIPES[quant], reporter=Silent())
                for what, engine, errors in stores(folder, quant):
                    official = Engine.open(source, "reference")
                    for tokens, kl, agree, ppl, ppl_store in compare(official, engine, ids, frontiers):
                        out.writerow(
                            [name, what, tokens, f"{kl:.3e}", f"{agree:.4f}", f"{ppl:.4f}", f"{ppl_store:.4f}", errors]
                        )
                        sys.stdout.flush()


if __name__ == "__main__":
    main()
