"""What inputs a model's experts get: all texts through one layer, then through the next.

Only one layer's weights are needed at a time, experts one by one. What the texts are between two layers, N tokens of S
streams, is a file in a folder: streams before the layer, while those behind it are written, and what is known of every
finished layer. All state is there, and a layer begun again gives the same bytes, so that `kill -9` loses at most one.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from v4kernels.api import Span
from v4kernels.reference.forward import ReferenceOps, Timeline
from v4kernels.tree import Kind, Tree

from v4cli import files, jsonfile
from v4cli.model.weights import layer_of
from v4cli.store import calibration
from v4cli.store.sources import DenseSource, Model
from v4cli.store.store import Store
from v4cli.system import replace, sync_folder

CHUNK = 512  # tokens through an attention at a time
PIECE = 2048  # tokens whose experts are computed together
TURNS = 6  # of the space in which directions are looked for
STATE = "state.json"
Progress = Callable[[int, int], None]  # units of work done, in all


def calibrate(
    model: Model, texts: Sequence[Sequence[int]], out: Path, progress: Progress = lambda done, n: None
) -> None:
    """Write the calibration `out` of a model from texts, as token ids; goes on where it was interrupted. ModelError."""
    config, scratch = model.config, out.with_name(f".{out.name}.layers")
    about = {"texts": _digest(texts), "model": model.fingerprint["content"]}
    done = _begin(scratch, about)
    streams = scratch / f"streams-{done}"
    n, layers = sum(map(len, texts)), config.num_hidden_layers
    with torch.inference_mode():
        if not streams.exists():
            _embed(model, texts, streams)
        for number in range(done, layers):
            after = scratch / f"streams-{number + 1}"
            found = _Layer(model, number).run(
                texts, streams, after, lambda k, at=number: progress(2 * n * at + k, 2 * n * layers)
            )
            _save(scratch / f"layer-{number}.npz", found)
            files.write_atomically(scratch / STATE, json.dumps(about | {"done": number + 1}).encode())
            streams.unlink()
            streams = after
    tensors = {}
    for number in range(layers):
        with np.load(scratch / f"layer-{number}.npz") as found:
            tensors |= {f"layers.{number}.{name}": found[name] for name in found.files}
    calibration.write(out, config, tensors, n)
    shutil.rmtree(scratch)


def _digest(texts: Sequence[Sequence[int]]) -> str:
    return hashlib.sha256(json.dumps([list(text) for text in texts]).encode()).hexdigest()


def _begin(scratch: Path, about: dict) -> int:
    """How many layers are done of this work; what was left of another is removed."""
    state = jsonfile.read(scratch / STATE) if (scratch / STATE).is_file() else {}
    if {key: state.get(key) for key in about} != about:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        files.write_atomically(scratch / STATE, json.dumps(about | {"done": 0}).encode())
        return 0
    for left in scratch.glob("*.tmp"):
        left.unlink()
    return state["done"]


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    replace(temporary, path)
    sync_folder(path.parent)


def _embed(model: Model, texts, out: Path) -> None:
    """The embeddings of all tokens as streams."""
    rows = _rows_of(model, "embed.weight", np.concatenate([np.asarray(text) for text in texts]))
    temporary = out.with_name(out.name + ".tmp")
    streams = np.lib.format.open_memmap(
        temporary, "w+", np.float32, (len(rows), model.config.hc_mult, model.config.hidden_size)
    )
    streams[:] = rows[:, None]
    streams.flush()
    del streams  # Windows renames no file that is mapped
    replace(temporary, out)


def _rows_of(model: Model, name: str, ids: np.ndarray) -> np.ndarray:
    used, where = np.unique(ids, return_inverse=True)
    return model.dense(name, torch.from_numpy(used)).numpy()[where]  # of Flash all of it takes gigabytes


class _Layer:
    """One layer of a model."""

    def __init__(self, model: Model, number: int):
        self.config = config = model.config
        ratio, hashed = config.compress_ratios[number], number < config.num_hash_layers
        self.kind = Kind.of(ratio)
        self.hashed = hashed
        layer = layer_of(config, DenseSource(model, lazy=True), f"layers.{number}.", ratio, hashed, experts=True)
        nothing = layer.hc_attn  # no op that is called here looks at a collapse
        self.layer = layer
        self.ops = ReferenceOps(Tree(embed=None, layers=[layer], hc_head=nothing, head=None))

    def run(self, texts, before: Path, after: Path, progress: Callable[[int], None]) -> dict[str, np.ndarray]:
        """From file `before` to file `after`; what a calibration says of the layer."""
        temporary = after.with_name(after.name + ".tmp")
        source = np.load(before, mmap_mode="r")
        streams = np.lib.format.open_memmap(temporary, "w+", np.float32, source.shape)
        n = len(source)
        first = 0
        for ids in texts:
            state = Timeline([self.layer.attn])
            for at in range(0, len(ids), CHUNK):
                rows = slice(first + at, first + min(at + CHUNK, len(ids)))
                streams[rows] = self._attention(ids[at : at + CHUNK], torch.from_numpy(source[rows].copy()), state, at)
                progress(rows.stop)
            first += len(ids)
        found = self._mixture(np.concatenate([np.asarray(text) for text in texts]), streams, lambda k: progress(n + k))
        streams.flush()
        del streams  # Windows renames no file that is mapped
        replace(temporary, after)
        return found

    def _attention(self, ids, streams: Tensor, state: Timeline, start: int) -> np.ndarray:
        ops = self.ops
        batch = ops.batch([Span(ids, state, start)])
        x, mix = ops.attention_input(0, streams)
        attend = {Kind.WINDOW: ops.window_attention, Kind.CSA: ops.csa_attention, Kind.HCA: ops.hca_attention}[
            self.kind
        ]
        return ops.sublayer_output(attend(0, x, batch), streams, mix).numpy()

    def _mixture(self, ids: np.ndarray, streams: np.ndarray, progress: Callable[[int], None]) -> dict[str, np.ndarray]:
        """The streams become those behind the experts."""
        ops, n, dim = self.ops, len(ids), self.config.hidden_size
        x, out = np.empty((n, dim), np.float32), np.empty((n, dim), np.float32)
        chosen, weights, mixes = [], [], []
        common = torch.zeros(dim, dim, dtype=torch.float64)
        for at in range(0, n, PIECE):
            rows = slice(at, min(at + PIECE, n))
            inputs, mix = ops.ffn_input(0, torch.from_numpy(streams[rows].copy()))
            batch = ops.batch([Span(ids[rows], None, 0)])
            routing = ops.route_by_token(0, inputs, batch) if self.hashed else ops.route_by_score(0, inputs)
            x[rows], out[rows] = inputs.numpy(), ops.shared_expert(0, inputs).numpy()
            common += (inputs.t() @ inputs).double()
            chosen.append(routing.chosen)
            weights.append(routing.weights)
            mixes.append(mix)
        axes = _factor(common / n, calibration.ranks(self.config)[0])
        axes = torch.nn.functional.normalize(axes).bfloat16().float()
        found = self._experts(
            torch.from_numpy(x), torch.from_numpy(out), torch.cat(chosen), torch.cat(weights), axes, progress
        )
        for i, mix in enumerate(mixes):
            rows = slice(i * PIECE, min((i + 1) * PIECE, n))
            streams[rows] = ops.sublayer_output(
                torch.from_numpy(out[rows]), torch.from_numpy(streams[rows].copy()), mix
            ).numpy()
        return found

    def _experts(
        self, x: Tensor, out: Tensor, chosen: Tensor, weights: Tensor, axes: Tensor, progress
    ) -> dict[str, np.ndarray]:
        """Adds them to `out`, expert by expert; what a calibration says of the layer."""
        config, ffn = self.config, self.layer.ffn
        inner, (rank, own_rank) = config.moe_intermediate_size, calibration.ranks(config)
        hits = np.zeros(len(ffn.experts), np.int64)
        of_x, of_z, along = (torch.zeros(len(hits), n) for n in (x.shape[1], inner, rank))
        together = torch.zeros(len(hits), rank * (rank + 1) // 2, dtype=torch.int8)
        own, upper = torch.zeros(len(hits), own_rank, inner, dtype=torch.int8), torch.triu_indices(rank, rank)
        for number, expert in enumerate(ffn.experts):
            rows, slot = (chosen == number).nonzero(as_tuple=True)
            hits[number] = len(rows)
            if len(rows):
                inputs = x[rows]
                z = self.ops.gated(inputs, expert, ffn.limit, weights[rows, slot][:, None]).float()
                out.index_add_(0, rows, self.ops.linear(z, expert.w2).float())
                of_x[number], of_z[number] = inputs.square().mean(0), z.square().mean(0)
                at = (inputs @ axes.t()).double()
                moments = at.t() @ at / len(rows)
                moments.diagonal().add_(1e-6 * moments.diagonal().mean() + 1e-30)
                along[number] = moments.diagonal().sqrt()
                together[number] = _parts(torch.linalg.cholesky(moments, upper=True), along[number])[*upper]
                own[number] = _parts(_factor_of_rows(z, own_rank), of_z[number].sqrt())
            progress(len(x) * (number + 1) // len(hits))
        found = {"axes": axes, "x": of_x, "z": of_z, "along": along}
        packed = {"hits": hits, "together": together.numpy(), "own": own.numpy()}
        return packed | {name: _bf16(values) for name, values in found.items()}


def _factor(moments: Tensor, rank: int) -> Tensor:
    """(rank, in) whose C^T C is nearest to moments (in, in) fp64 of that rank; of far more inputs than that, nearly."""
    if len(moments) <= 8 * rank:
        values, vectors = torch.linalg.eigh(moments)
    else:  # in a space of some more directions, that is turned towards those of most weight
        space = torch.randn(len(moments), rank + 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for _ in range(TURNS):
            space = torch.linalg.qr(moments @ space)[0]
        values, inside = torch.linalg.eigh(space.t() @ moments @ space)
        vectors = space @ inside
    return (vectors[:, -rank:] * values[-rank:].clamp_min(0).sqrt()).t().float()


def _factor_of_rows(rows: Tensor, rank: int) -> Tensor:
    """The same for the second moments of rows (n, in); few rows tell their directions without them, and exactly."""
    n, rows = len(rows), rows.double()
    if n > 8 * rank:
        return _factor(rows.t() @ rows / n, rank)
    directions = torch.linalg.eigh(rows @ rows.t())[1][:, -rank:]
    factor = torch.zeros(rank, rows.shape[1])
    factor[: directions.shape[1]] = directions.t() @ rows / n**0.5
    return factor


def _parts(factor: Tensor, spread: Tensor) -> Tensor:
    """A factor (rank, n) of second moments as int8, parts of the root mean square (n,) of each input."""
    return (factor / spread.clamp_min(1e-30) * calibration.UNIT).round_().clamp_(-127, 127).to(torch.int8)


def _bf16(values: Tensor) -> np.ndarray:
    return values.bfloat16().contiguous().view(torch.uint16).numpy()


def of_model(model: Model) -> bool:
    """Whether a store has its experts as they were: what low bits made of them tells less."""
    return not isinstance(model, Store) or not any(form in calibration.FORMATS for form in model.formats.values())
