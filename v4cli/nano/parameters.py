"""nano's trainable parameters: fp32 masters under official tensor names, seen by the forward as the quantized
values the shipped checkpoint will hold (straight-through gradients)."""

import torch
from torch import Tensor, nn
from v4kernels.formats import OFFICIAL
from v4kernels.reference.equations import Weight

from v4cli.model.schema import expected_tensors
from v4cli.store.formats import fake_fp4, fake_fp8

# Compiled into single loops where that is right: of blocks that have to be padded it is not (torch 2.13).
FAKE = {"fp8": fake_fp8, "fp4": torch.compile(fake_fp4, dynamic=False)}


class TrainableWeight(Weight):
    """A master matrix; `dense()` gives its quantized value with the master's gradient."""

    __slots__ = ("master", "quantized")

    def __init__(self, kind: str, master: nn.Parameter):
        super().__init__(kind)
        self.master = master
        self.quantized = None

    def requantize(self) -> None:
        """Refresh the quantized value after an optimizer step; without one there is nothing to do."""
        if self.kind in FAKE and (self.master.requires_grad or self.quantized is None):
            with torch.no_grad():
                self.quantized = FAKE[self.kind](self.master) - self.master

    def dense(self) -> Tensor:
        return self.master if self.quantized is None else self.master + self.quantized


class Parameters:
    """All tensors of a trunk, or with `drafter` of its draft blocks alone, created from a seed; a weight source for
    model.weights.build."""

    def __init__(self, config, seed: int, drafter: bool = False):
        generator = torch.Generator().manual_seed(seed)
        self.tensors: dict[str, Tensor] = {}
        self.weights: dict[str, TrainableWeight] = {}
        for name, spec in expected_tensors(config, with_mtp=drafter).items():
            if name.endswith(".scale") or name.startswith("mtp.") != drafter:
                continue
            shape = spec.shape
            if len(shape) == 2 and spec.dtype in OFFICIAL:
                shape = shape[0], OFFICIAL[spec.dtype].cols(shape[1])
            value = initial(config, name, shape, generator)
            trainable = value.is_floating_point() and not name.endswith("gate.bias")
            self.tensors[name] = nn.Parameter(value) if trainable else value
            if trainable and len(shape) == 2 and name.endswith(".weight"):
                self.weights[name] = TrainableWeight(OFFICIAL[spec.dtype].name, self.tensors[name])

    def weight(self, name: str) -> Weight:
        return self.weights[name]

    def vector(self, name: str) -> Tensor:
        return self.tensors[name]

    def load(self, checkpoint) -> None:
        """Start from the values of an official checkpoint."""
        for name, tensor in self.tensors.items():
            stored = checkpoint.dense(name) if tensor.is_floating_point() else checkpoint.tensor(name)
            tensor.data.copy_(stored)

    def requantize(self) -> None:
        for weight in self.weights.values():
            weight.requantize()

    def freeze(self, trains) -> None:
        """Train only the tensors for whose name `trains` is true."""
        for name, tensor in self.tensors.items():
            tensor.requires_grad_(tensor.requires_grad and trains(name))

    def groups(self) -> tuple[list[Tensor], list[Tensor]]:
        """For the optimizers: inner matrices, and the rest (embedding, head, routers, vectors, hyper-connections)."""
        trained = {n: t for n, t in self.tensors.items() if t.requires_grad}
        outer = ("embed.weight", "head.weight")
        inner = {n for n in self.weights if n not in outer and not n.endswith("gate.weight")}
        return [t for n, t in trained.items() if n in inner], [t for n, t in trained.items() if n not in inner]


def initial(config, name: str, shape, generator) -> Tensor:
    """Starting value of one tensor: unit norms, fan-in scaled matrices, hyper-connections near plain residual."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "tid2eid":
        rows = torch.rand((shape[0], config.n_routed_experts), generator=generator)
        return rows.topk(shape[1], dim=-1).indices
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    if leaf in ("bias", "attn_sink", "ape"):
        return torch.zeros(shape)
    if leaf.startswith("hc_"):
        return initial_hyper(config, leaf, shape, generator)
    if leaf == "weight" and name.endswith((".wo_b.weight", ".w2.weight")):
        return torch.zeros(shape)  # sublayers start silent, so that token identities lead the streams
    if name.endswith(("markov_w2.weight", "confidence_head.proj.weight")):
        return torch.zeros(shape)  # nothing is said of the next token yet, and every chance is a half
    if name == "embed.weight":
        # what all tokens share stands in for a bias: attention by position alone needs one, and copying needs that
        return torch.randn(shape, generator=generator) + torch.randn(shape[1:], generator=generator)
    std = 0.02 if name == "head.weight" else shape[-1] ** -0.5
    return torch.randn(shape, generator=generator) * std


def initial_hyper(config, leaf: str, shape, generator) -> Tensor:
    """Collapse weights 1/S, post 1, comb close to the identity; the input-dependent part starts small."""
    n = config.hc_mult
    if leaf.endswith("fn"):
        return torch.randn(shape, generator=generator) * shape[-1] ** -0.5
    if leaf.endswith("scale"):
        return torch.full(shape, 0.1)
    collapse = torch.full((n,), -1.0986)  # sigmoid = 1/4
    if leaf == "hc_head_base":
        return collapse
    return torch.cat((collapse, torch.zeros(n), 4.0 * torch.eye(n).flatten()))
