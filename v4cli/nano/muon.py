"""Muon: momentum SGD whose matrix updates are orthogonalised (Jordan et al. 2024, "Muon"; scale after Liu et al.
2025, "Muon is scalable for LLM training"). Matrices of one shape are handled in batches."""

import torch
from torch import Tensor

ITERATIONS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)  # steep at zero: small singular values reach about 1 in five iterations
BATCH_VALUES = 1 << 18  # matrices are handled together up to this many values, so that a batch stays in cache
RMS = 0.2  # update size per element, that of AdamW, so that both share a learning rate


def orthogonalize(g: Tensor) -> Tensor:
    """Newton-Schulz: (B, m, n) -> about U V^T of each matrix's singular value decomposition."""
    a, b, c = QUINTIC
    wide = g.shape[1] <= g.shape[2]
    x = g if wide else g.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT  # (B, m, m)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """For 2-D parameters only; momentum is Nesterov's, weight decay decoupled."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[tuple, list[Tensor]] = {}
            for p in group["params"]:
                by_shape.setdefault(tuple(p.shape), []).append(p)
            for (rows, cols), params in by_shape.items():
                n = max(1, BATCH_VALUES // (rows * cols))
                for i in range(0, len(params), n):
                    self._update(group, params[i : i + n])

    def _update(self, group: dict, params: list[Tensor]) -> None:
        # an expert that no token chose has no gradient
        grads = torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in params])
        memory = self.state[params[0]].setdefault("momentum", torch.zeros_like(grads))
        memory.lerp_(grads, 1 - group["momentum"])
        update = orthogonalize(grads.lerp(memory, group["momentum"]))
        size = RMS * max(grads.shape[1:]) ** 0.5
        for p, u in zip(params, update):
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(u, alpha=-group["lr"] * size)
