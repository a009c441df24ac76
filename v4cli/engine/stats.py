"""What a generation cost, as a dataclass that every front end prints."""

from dataclasses import asdict, dataclass, replace

from v4cli.engine.drafting import Drafted
from v4cli.system import peak_rss_bytes


@dataclass
class Stats:
    """Counts and seconds of one turn; seconds are wall clock."""

    load_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # not computed for this turn
    restored_tokens: int = 0  # of these, how far a stored prefix went
    prefill_tokens: int = 0
    prefill_s: float = 0.0
    completion_tokens: int = 0
    decode_s: float = 0.0
    kv_bytes: int = 0
    planned_bytes: int = 0  # of memory, where it is bounded
    memory: dict[str, tuple[int, int]] | None = None  # the ledger's items: bytes planned, bytes held
    vram: dict[str, tuple[int, int]] | None = None  # the same of a GPU
    reached: dict[str, float] | None = None  # while decoding, with a GPU: see Engine.reached
    prefill_experts: dict | None = None  # Counts.to_dict(), where they are not all in one place
    decode_experts: dict | None = None
    drafts: Drafted | None = None  # what they did while tokens were generated

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.prefill_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        return self.completion_tokens / self.decode_s if self.decode_s else 0.0

    def to_dict(self) -> dict:
        """Every figure by name, rates and the process's peak memory included."""
        drafts = self.drafts and asdict(self.drafts) | {"row_cost": self.drafts.row_cost, "gain": self.drafts.gain}
        return asdict(self) | {
            "drafts": drafts,
            "prefill_tokens_per_s": self.prefill_tokens_per_s,
            "decode_tokens_per_s": self.decode_tokens_per_s,
            "peak_rss_bytes": peak_rss_bytes(),
        }


SUMMED = (
    "prompt_tokens", "cached_tokens", "restored_tokens", "prefill_tokens", "prefill_s", "completion_tokens", "decode_s",
)  # fmt: skip


def total(turns: list[Stats]) -> Stats:
    """Of several turns: counts and seconds added up; the rest as of the last."""
    if not turns:
        return Stats()
    drafts = [turn.drafts for turn in turns if turn.drafts]
    drafted = Drafted.sum(drafts) if drafts else None
    return replace(turns[-1], drafts=drafted, **{name: sum(getattr(turn, name) for turn in turns) for name in SUMMED})
