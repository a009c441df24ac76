"""Which experts stay in memory: a fixed number of places, given to those most likely to be used by the next token.

How often each expert was used is remembered at several time scales at once: rates that fade with half-lives of 1 to
4,096 tokens, for all experts, resident or not. So is how near each came to being used, where the router tells: six uses
a layer say little about the other 250 experts, scores of all of them say much more, and sooner. The chance of a use by
the next token is a weighted sum of these, its weights learned on the way by least squares over all experts and tokens:
where experts come again at once the short rates get the weight (then it is near LRU), where some are popular for good
the long ones do (LFU). An expert that was read stays only if its chance exceeds that of the least likely resident, so
what is used once displaces nothing.

Knows no files and no memory: tests and `v4 bench cache` use it without a model. A token costs a few vector operations
over all experts and one sort of the resident ones.
"""

from collections.abc import Sequence

import numpy as np

HALF_LIVES = np.array([1.0, 8.0, 64.0, 512.0, 4096.0])  # of rates of use, in tokens
NEAR_HALF_LIVES = np.array([2.0, 16.0, 128.0])  # of nearness to being used
SHARPNESS = 1.5, 3.0  # chances fall by e^1.5 or e^3 from the limit of being used to the median score
FIRST_WEIGHTS = np.array([0.1, 0.3, 0.3, 0.3, 0.3, 0.0] + [0.0] * 6)  # of rates, a constant, and nearness
CONSTANT = len(HALF_LIVES)
RATES, NEAR = slice(CONSTANT), slice(CONSTANT + 1, None)
PATIENCE = 0.998  # of what was learned, kept from token to token
TRUST = 1e-3  # how firmly the first weights are held to


def nearness(scores: np.ndarray, top_k: int) -> np.ndarray:
    """How near each expert of a layer came to being among the top_k (E,), on average over tokens (n, E): 0 at the
    limit, -1 at the token's median score."""
    n = scores.shape[1]
    ordered = np.partition(scores, (n // 2, n - top_k), axis=1)
    limit, middle = ordered[:, n - top_k, None], ordered[:, n // 2, None]
    near = (scores - limit) / np.maximum(limit - middle, 1e-9)
    return np.clip(near, -4, 1).mean(axis=0)


class Residency:
    """`places` places for experts numbered 0 .. n_experts - 1, over all layers."""

    def __init__(self, n_experts: int, places: int):
        self.places = places
        self.resident = np.zeros(n_experts, bool)
        self.n_resident = 0
        self.features = np.zeros((len(FIRST_WEIGHTS), n_experts), np.float32)
        self.features[CONSTANT] = 1
        self._near = np.zeros((len(NEAR_HALF_LIVES), n_experts), np.float32)  # fading averages of nearness
        self._near_total = np.zeros((len(NEAR_HALF_LIVES), 1), np.float32)  # what the weights in them add up to
        self._near_now = np.zeros(n_experts, np.float32)  # in this step
        self._squares = TRUST * np.eye(len(FIRST_WEIGHTS))  # of the least squares: F F^T and F u
        self._products = TRUST * FIRST_WEIGHTS
        self.weights = FIRST_WEIGHTS
        self.chance = np.zeros(n_experts)  # of a use by the next token
        self._used: list[tuple[np.ndarray, np.ndarray]] = []  # experts and their uses per token, of this step
        self._held = np.zeros(n_experts, bool)  # used by this step, or about to be
        self._candidates: list[int] | None = None  # the other residents, the least likely last

    # -- a step: one decoded token, or one chunk of a prompt ----------------------------------------------------

    def scored(self, first: int, near: np.ndarray) -> None:
        """What `nearness` says of a layer's experts, numbered from `first`, in this step; before they are `used`."""
        self._near_now[first : first + len(near)] = near

    def used(self, experts: np.ndarray, uses: np.ndarray, n_tokens: int = 1) -> None:
        """Count uses by this step of n tokens: experts (m,), `uses` of each among them."""
        share = np.broadcast_to(np.asarray(uses, np.float32) / n_tokens, experts.shape)
        fade = _fade(HALF_LIVES, n_tokens)
        self._used.append((experts, share))
        self.hold(experts)
        rates = self.features[RATES, experts] * fade + (1 - fade) * share
        near = self._features_of(*self._near_after(experts, n_tokens))
        self.chance[experts] = self.weights[RATES] @ rates + self.weights[CONSTANT] + self.weights[NEAR] @ near

    def hold(self, experts: np.ndarray | list[int]) -> None:
        """These stay until the step is over, if they are resident."""
        self._held[experts] = True

    def forget_step(self) -> None:
        """The step failed: it does not count."""
        self._used, self._candidates = [], None
        self._held[:] = False
        self._near_now[:] = 0
        self.chance = self.weights @ self.features

    def end_step(self, n_tokens: int = 1) -> None:
        """The step is over: learn from it."""
        if not self._used:
            return
        experts = np.concatenate([experts for experts, _ in self._used])
        uses = np.concatenate([uses for _, uses in self._used])
        if n_tokens == 1:
            self._squares = PATIENCE * self._squares + self.features @ self.features.T
            self._products = PATIENCE * self._products + self.features[:, experts] @ uses
            self.weights = np.linalg.solve(self._squares, self._products)
        fade = _fade(HALF_LIVES, n_tokens)
        self.features[RATES] *= fade
        self.features[RATES, experts] += (1 - fade) * uses
        self._near, self._near_total = self._near_after(slice(None), n_tokens)
        self.features[NEAR] = self._features_of(self._near, self._near_total)
        self.forget_step()

    def _near_after(self, experts: np.ndarray | slice, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Averages of nearness with this step, and what their weights add up to."""
        fade = _fade(NEAR_HALF_LIVES, n_tokens)
        now = self._near[:, experts] * fade + (1 - fade) * self._near_now[experts]
        return now, self._near_total * fade + (1 - fade)

    @staticmethod
    def _features_of(near: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Chances fall exponentially with the distance to being used. Zero for experts that no router scores."""
        mean = near / np.maximum(total, 1e-9)
        return np.concatenate([np.where(near == 0, 0, np.exp(np.minimum(s * mean, 1))) for s in SHARPNESS])

    # -- places -------------------------------------------------------------------------------------------------

    def admit(self, expert: int) -> int | None:
        """Make it resident if it is worth it. The expert that gave way; `expert` itself if it stays out; None if a
        place was free."""
        victim = None
        if self._full(expert):
            victim = self._least(expert)
            if victim is None or self.chance[victim] >= self.chance[expert]:
                return expert
            self.drop(victim)
        self.resident[expert] = True
        self.n_resident += 1
        return victim

    def _full(self, expert: int) -> bool:
        """Whether one has to go for this one."""
        return self.n_resident >= self.places

    def drop(self, expert: int) -> None:
        """It is no longer in memory."""
        self.n_resident -= bool(self.resident[expert])
        self.resident[expert] = False

    def _least(self, expert: int) -> int | None:
        """The least likely resident that this step does not hold and that `expert` may take the place of, among those
        that were so when it first asked."""
        if self._candidates is None:
            held = np.flatnonzero(self.resident & ~self._held)
            self._candidates = held[np.argsort(-self.chance[held], kind="stable")].tolist()
        return self._last_of(self._candidates)

    def _last_of(self, candidates: list[int]) -> int | None:
        """The last that is resident and not held still; those behind it are dropped."""
        while candidates:
            if self.resident[candidates[-1]] and not self._held[candidates[-1]]:
                return candidates[-1]
            candidates.pop()
        return None

    # -- learned use --------------------------------------------------------------------------------------------

    def learned(self) -> dict[str, np.ndarray]:
        """Everything that was learned, as arrays by name."""
        return {
            "rates": self.features[RATES], "near": self._near, "near_total": self._near_total,
            "squares": self._squares, "products": self._products,
        }  # fmt: skip

    def learn(self, arrays: dict[str, np.ndarray]) -> None:
        """Begin with what `learned` gave. ValueError if it is not of so many experts, or not finite."""
        mine = self.learned()
        for name, array in mine.items():
            other = arrays.get(name)
            if other is None or other.shape != array.shape or not np.isfinite(other).all():
                raise ValueError(f"{name}: missing, of another shape, or not finite")
        learned = [arrays[name].astype(mine[name].dtype) for name in mine]
        self.features[RATES], self._near, self._near_total, self._squares, self._products = learned
        self.features[NEAR] = self._features_of(self._near, self._near_total)
        self.weights = np.linalg.solve(self._squares, self._products)
        self.chance = self.weights @ self.features
        self._candidates = None

    def best(self) -> np.ndarray:
        """The experts that were ever used, the likeliest first, as many as there are places."""
        return self._ever_used()[: max(self.places, 0)]

    def _ever_used(self) -> np.ndarray:
        order = np.argsort(-self.chance, kind="stable")
        return order[self.features[RATES, order].any(axis=0)]


class Divided(Residency):
    """The same where experts are of several kinds, each with places of its own."""

    def __init__(self, places: Sequence[int], kind: np.ndarray):
        """`places` by number of a kind; `kind` (n_experts,): that of each."""
        super().__init__(len(kind), sum(places))
        self.places_of, self.kind = list(places), kind
        self.residents_of = [0] * len(places)
        self._rivals: dict[int, list[int]] = {}  # `_candidates` of a kind

    def admit(self, expert: int) -> int | None:
        victim = super().admit(expert)
        self.residents_of[self.kind[expert]] += victim != expert
        return victim

    def drop(self, expert: int) -> None:
        self.residents_of[self.kind[expert]] -= bool(self.resident[expert])
        super().drop(expert)

    def _full(self, expert: int) -> bool:
        kind = self.kind[expert]
        return self.residents_of[kind] >= self.places_of[kind]

    def _least(self, expert: int) -> int | None:
        if self._candidates is None:  # of an earlier step
            self._candidates, self._rivals = [], {}
        kind = int(self.kind[expert])
        if kind not in self._rivals:
            held = np.flatnonzero(self.resident & ~self._held & (self.kind == kind))
            self._rivals[kind] = held[np.argsort(-self.chance[held], kind="stable")].tolist()
        return self._last_of(self._rivals[kind])

    def give_way(self, places: Sequence[int]) -> list[int]:
        """From now on there are so many places, not more than before: those that there are too many of, the least
        likely residents; they are no longer."""
        self.places_of, self.places = list(places), sum(places)
        victims = []
        for kind, n_places in enumerate(places):
            held = np.flatnonzero(self.resident & (self.kind == kind))
            least = held[np.argsort(self.chance[held], kind="stable")]
            victims += least[: max(0, len(held) - n_places)].tolist()
        for victim in victims:
            self.drop(victim)
        self._candidates = None
        return victims

    def best(self) -> np.ndarray:
        order = self._ever_used()
        chosen = np.zeros(len(order), bool)
        for kind, places in enumerate(self.places_of):
            chosen[np.flatnonzero(self.kind[order] == kind)[:places]] = True
        return order[chosen]


def _fade(half_lives: np.ndarray, n_tokens: int) -> np.ndarray:
    """What is left after so many tokens, a column."""
    return (2.0 ** (-n_tokens / half_lives)).astype(np.float32)[:, None]
