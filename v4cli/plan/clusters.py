"""Servers' GPUs by the dozen: whether a model fits on them with vLLM or SGLang, and how these are started there.

What is assumed, and whence: memory as drivers count it, or else as makers publish it; the share of it that is used is
vLLM's usual --gpu-memory-utilization. Weights are those of the official checkpoint, divided evenly (tensor and expert
parallel: vllm-project/recipes, strategies/single_node_tep.yaml). There is one KV head, so every GPU holds the KV of
all sessions, in the layout of those servers: 7,705 bytes a token of Flash (sgl-project/sglang#32741; 7,450 in
vllm-project/vllm#51041), where the official layout has 3,514. Flags are those of vllm-project/recipes,
models/deepseek-ai/DeepSeek-V4-*.yaml, and of SGLang's cookbook, docs_new/src/snippets/configs/deepseek-ai/
deepseek-v4.jsx, both as of autumn 2026. None of it was run.
"""

import re
import shlex
from dataclasses import dataclass

from v4cli.errors import UsageError
from v4cli.model.config import V4Config
from v4cli.plan import cost
from v4cli.plan.cards import CARDS

SHARE = 0.9  # of a GPU's memory
WORK = 4 << 30  # bytes of it for activations and recorded steps: assumed
KV_FACTOR = 7705 / 3514
MOST_GPUS = 64
COUNTS = 1, 2, 4, 8, 16
HEAD_PORT = 20000


@dataclass(frozen=True)
class Gpu:
    """`vram` in bytes; `per_node`: how many a machine has; `runner`: SGLang's kernels for FP4 experts there."""

    name: str
    vram: int
    per_node: int
    family: str
    runner: str


def _known(name: str) -> int:
    return next(card.vram for card in CARDS if card.name == name)


GPUS = (
    Gpu("H100", _known("H100 80GB"), 8, "hopper", "marlin"),
    Gpu("H200", _known("H200"), 8, "hopper", "flashinfer_mxfp4"),
    Gpu("B200", 180_000_000_000, 8, "blackwell", "flashinfer_mxfp4"),
    Gpu("B300", 268_000_000_000, 8, "blackwell", "flashinfer_mxfp4"),
    Gpu("GB200", 184_000_000_000, 4, "blackwell", "flashinfer_mxfp4"),
    Gpu("GB300", 268_000_000_000, 4, "blackwell", "flashinfer_mxfp4"),
    Gpu("RTX-PRO-6000", _known("RTX PRO 6000"), 8, "workstation", "marlin"),
    Gpu("MI355X", 288_000_000_000, 8, "amd", ""),
)


@dataclass(frozen=True)
class Cluster:
    """So many of one GPU."""

    count: int
    gpu: Gpu

    @property
    def name(self) -> str:
        return f"{self.count}x{self.gpu.name}"

    @property
    def nodes(self) -> int:
        return -(-self.count // self.gpu.per_node)


@dataclass(frozen=True)
class Fit:
    """What one GPU of a cluster holds, in bytes. `parallel`: how many of the GPUs share the work."""

    cluster: Cluster
    parallel: int
    weights: int
    kv: int  # of all sessions
    kv_of_one: int

    @property
    def usable(self) -> int:
        return int(SHARE * self.cluster.gpu.vram)

    @property
    def left(self) -> int:
        """Negative: what is lacking."""
        return self.usable - WORK - self.weights - self.kv

    @property
    def most_sessions(self) -> int:
        return max(0, (self.left + self.kv) // self.kv_of_one)


def named(text: str) -> Cluster:
    """4xH100. UsageError lists the GPUs."""
    known = ", ".join(gpu.name for gpu in GPUS)
    match = re.fullmatch(r"([0-9]{1,3})\s*[x*]\s*(\S.*)", text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"--cluster {text[:40]!r} is no number of GPUs", f"--cluster 8xH200; there are {known}")
    gpu = next((gpu for gpu in GPUS if _plain(gpu.name) == _plain(match[2])), None)
    if gpu is None:
        raise UsageError(f"--cluster: no GPU {match[2][:40]!r} is known", f"choose from {known}")
    if not 1 <= int(match[1]) <= MOST_GPUS:
        raise UsageError(f"--cluster takes 1 to {MOST_GPUS} GPUs, not {match[1]}", f"--cluster 8x{gpu.name}")
    return Cluster(int(match[1]), gpu)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]|nvidia|amd", "", name.lower())


def fit(cluster: Cluster, config: V4Config, n_bytes: int, n_tokens: int, sessions: int) -> Fit:
    """Of a model with so many bytes of weights; `n_tokens` of each session."""
    splits = [n for n in range(1, cluster.count + 1) if _divides(n, config)]
    parallel = max(splits)
    one = int(KV_FACTOR * cost.kv_bytes(config, n_tokens).total)
    return Fit(cluster, parallel, -(-n_bytes // parallel), sessions * one, one)


def _divides(n: int, config: V4Config) -> bool:
    """Whether heads and experts can be shared by n GPUs."""
    return config.num_attention_heads % n == 0 and config.n_routed_experts % n == 0


# -- commands --------------------------------------------------------------------------------------------------


def vllm_command(fit: Fit, repository: str, n_tokens: int, sessions: int) -> str:
    """As vLLM's recipes have it: tensor and expert parallel."""
    words = [
        "vllm serve", shlex.quote(repository), "--trust-remote-code --kv-cache-dtype fp8 --block-size 256",
        f"--tensor-parallel-size {fit.parallel}", *(["--enable-expert-parallel"] if fit.parallel > 1 else []),
        f"--max-model-len {n_tokens} --max-num-seqs {sessions}", "--tokenizer-mode deepseek_v4",
        "--enable-prompt-tokens-details",
    ]  # fmt: skip
    if fit.cluster.gpu.family == "blackwell":
        words.append("--attention_config.indexer_kv_dtype=mxfp4 --moe-backend deep_gemm_mega_moe")
    if fit.cluster.gpu.family == "amd":
        words.insert(0, "VLLM_ROCM_USE_AITER=1")
        words.append("--distributed-executor-backend mp")
    if fit.cluster.nodes > 1:
        words.append(
            f"--nnodes {fit.cluster.nodes} --node-rank RANK --master-addr HEAD  # --headless on all but RANK 0"
        )
    return " ".join(words)


def sglang_command(fit: Fit, repository: str, n_tokens: int, sessions: int) -> str:
    """As SGLang's cookbook has it: tensor parallel, its kernels for FP4 experts by the GPU."""
    runner = fit.cluster.gpu.runner
    words = [
        "sglang serve --trust-remote-code --model-path", shlex.quote(repository), f"--tp {fit.parallel}",
        *([f"--moe-runner-backend {runner}"] if runner else []),
        f"--context-length {n_tokens} --max-running-requests {sessions} --mem-fraction-static {SHARE}",
    ]  # fmt: skip
    if fit.cluster.nodes > 1:
        words.append(f"--nnodes {fit.cluster.nodes} --node-rank RANK --dist-init-addr HEAD:{HEAD_PORT}")
    return " ".join(words)
