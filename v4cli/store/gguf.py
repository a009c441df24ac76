"""Reading a GGUF file (llama.cpp) of DeepSeek-V4 without trusting it: metadata, the config that they mean, and the
place of every tensor under its official name. No torch.

Read are files whose routed experts are MXFP4, which are the official bits, and everything else F32, F16, BF16 or Q8_0.
Layout: `GGUF`, version, two counts, metadata (key, type, value), tensors (name, dimensions from the innermost on, type,
offset), padding, data. Every count and length is held against what is left of the file before anything is allocated.
"""

import math
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

from v4cli import files
from v4cli.errors import ModelError
from v4cli.model.config import FIXED, FIXED_QUANTIZATION
from v4cli.model.schema import TensorSpec
from v4cli.store.header import TensorPlace
from v4cli.store.packings import PACKINGS

ARCHITECTURE = "deepseek4"
MAX_HEADER = 64 << 20  # bytes; V4's has 129,280 tokens and as many merges, 6 MiB
MAX_ENTRIES = 1 << 20  # of an array
MAX_KEYS = 1 << 12
MAX_TENSORS = 1 << 16
MAX_TEXT = 1 << 16  # bytes of a key, a name or a token; a chat template may be longer, and is not kept
SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "<u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
TEXT, ARRAY = 8, 9
TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0", 42: "Q2_0",
}  # fmt: skip
READ = {  # type: dtype it is kept as, packing, values of a block
    "F32": ("F32", "", 1), "F16": ("F32", "f16", 1), "BF16": ("BF16", "", 1), "Q8_0": ("F32", "q8_0", 32),
    "I32": ("I64", "i32", 1), "I64": ("I64", "", 1),
}  # fmt: skip
GATING = 4  # sqrtsoftplus
MXFP4_BYTES = 17  # of 32 values
NEEDED = "experts in MXFP4 and all else in F32, F16, BF16 or Q8_0 can be read"
EXPERTS = re.compile(r"(layers\.\d+\.ffn\.experts)\.(w[123])")

GLOBALS = {
    "token_embd.weight": "embed.weight", "output.weight": "head.weight", "output_norm.weight": "norm.weight",
    "output_hc_fn.weight": "hc_head_fn", "output_hc_base.weight": "hc_head_base",
    "output_hc_scale.weight": "hc_head_scale",
}  # fmt: skip
OF_LAYER = {  # behind blk.N. and layers.N.
    "attn_norm.weight": "attn_norm.weight", "ffn_norm.weight": "ffn_norm.weight",
    "attn_sinks.weight": "attn.attn_sink", "attn_q_a.weight": "attn.wq_a.weight", "attn_q_b.weight": "attn.wq_b.weight",
    "attn_q_a_norm.weight": "attn.q_norm.weight", "attn_kv.weight": "attn.wkv.weight",
    "attn_kv_a_norm.weight": "attn.kv_norm.weight", "attn_output_a.weight": "attn.wo_a.weight",
    "attn_output_b.weight": "attn.wo_b.weight",
    "attn_compressor_kv.weight": "attn.compressor.wkv.weight",
    "attn_compressor_gate.weight": "attn.compressor.wgate.weight", "attn_compressor_ape.weight": "attn.compressor.ape",
    "attn_compressor_norm.weight": "attn.compressor.norm.weight",
    "indexer.proj.weight": "attn.indexer.weights_proj.weight", "indexer.attn_q_b.weight": "attn.indexer.wq_b.weight",
    "indexer_compressor_kv.weight": "attn.indexer.compressor.wkv.weight",
    "indexer_compressor_gate.weight": "attn.indexer.compressor.wgate.weight",
    "indexer_compressor_ape.weight": "attn.indexer.compressor.ape",
    "indexer_compressor_norm.weight": "attn.indexer.compressor.norm.weight",
    "hc_attn_fn.weight": "hc_attn_fn", "hc_attn_base.weight": "hc_attn_base", "hc_attn_scale.weight": "hc_attn_scale",
    "hc_ffn_fn.weight": "hc_ffn_fn", "hc_ffn_base.weight": "hc_ffn_base", "hc_ffn_scale.weight": "hc_ffn_scale",
    "ffn_gate_inp.weight": "ffn.gate.weight", "ffn_gate_tid2eid.weight": "ffn.gate.tid2eid",
    "exp_probs_b.bias": "ffn.gate.bias",
    "ffn_gate_shexp.weight": "ffn.shared_experts.w1.weight", "ffn_down_shexp.weight": "ffn.shared_experts.w2.weight",
    "ffn_up_shexp.weight": "ffn.shared_experts.w3.weight",
    "ffn_gate_exps.weight": "ffn.experts.w1", "ffn_down_exps.weight": "ffn.experts.w2",
    "ffn_up_exps.weight": "ffn.experts.w3",
}  # fmt: skip


@dataclass(frozen=True)
class Gguf:
    """One file: its metadata, and the places of tensors by official name, those of stacked experts one by one."""

    metadata: dict[str, object]  # numbers, texts, and lists of them
    places: dict[str, TensorPlace]


def read(path: Path) -> Gguf:
    """Header of one file. ModelError names the file and the tensor or key."""
    with files.open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            return _Header(path, file, min(size, MAX_HEADER), size).read()
        except OSError as problem:
            raise ModelError(f"{path}: cannot be read ({problem.strerror})") from None


class _Header:
    """A file's header, from its begin; never reads beyond `limit`."""

    def __init__(self, path: Path, file: BinaryIO, limit: int, size: int):
        self.path, self.file, self.limit, self.size, self.at = path, file, limit, size, 0

    def wrong(self, problem: str, hint: str = "") -> ModelError:
        return ModelError(f"{self.path}: {problem}", hint)

    def take(self, n: int) -> bytes:
        if n > self.limit - self.at:
            if self.size > MAX_HEADER:
                raise self.wrong(f"a GGUF header of more than {MAX_HEADER >> 20} MiB, which no V4 file has")
            raise self.wrong(f"truncated: byte {self.at + n} of the header is asked for, the file has {self.size}")
        self.at += n
        data = self.file.read(n)
        if len(data) != n:
            raise self.wrong("ends too soon; the file changed while in use")
        return data

    def number(self, form: str):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, what: str, most: int, least_bytes: int) -> int:
        """A count that its entries' least size, and `most`, bound."""
        n = self.number("<Q")
        if n > most or n * least_bytes > self.limit - self.at:
            raise self.wrong(f"{n} {what}, more than there can be")
        return n

    def text(self, most: int = MAX_TEXT) -> str:
        n = self.count("bytes of text", self.limit, 1)
        data = self.take(n)
        return data[:most].decode("utf-8", "replace")

    def read(self) -> Gguf:
        if self.size < 24 or self.take(4) != b"GGUF":
            raise self.wrong("not a GGUF file, or truncated")
        version = self.number("<I")
        if version not in (2, 3):
            raise self.wrong(f"GGUF version {version}; 2 and 3 are read")
        n_tensors, n_keys = self.count("tensors", MAX_TENSORS, 24), self.count("keys", MAX_KEYS, 13)
        metadata: dict[str, object] = {}
        for _ in range(n_keys):
            key = self.text()
            if key in metadata:
                raise self.wrong(f"key {key[:80]!r} is there twice")
            metadata[key] = self.value(key, self.number("<I"))
        kind = metadata.get("general.architecture")
        if kind != ARCHITECTURE and not metadata.get("split.no"):  # the first part of several says it for all
            wanted = f"this engine runs DeepSeek-V4 ({ARCHITECTURE})"
            raise self.wrong(f"a GGUF file of architecture {str(kind)[:40]!r}; {wanted}")
        align = metadata.get("general.alignment", 32)
        if not isinstance(align, int) or not 1 <= align <= 1 << 20:
            raise self.wrong(f"general.alignment is {align!r:.40}")
        infos = [self.tensor() for _ in range(n_tensors)]
        return Gguf(metadata, dict(self.placed(infos, self.at + -self.at % align, align)))

    def value(self, key: str, kind: int):
        if kind in SCALARS:
            value = np.frombuffer(self.take(np.dtype(SCALARS[kind]).itemsize), SCALARS[kind])[0].item()
            return bool(value) if kind == 7 else value
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            raise self.wrong(f"key {key[:80]!r}: no type {kind} is known")
        kind = self.number("<I")
        if kind in SCALARS:
            dtype = np.dtype(SCALARS[kind])
            n = self.count(f"entries of {key[:80]!r}", MAX_ENTRIES, dtype.itemsize)
            return np.frombuffer(self.take(n * dtype.itemsize), dtype).tolist()
        if kind != TEXT:
            raise self.wrong(f"key {key[:80]!r}: arrays of type {kind} are not read")
        return [self.text() for _ in range(self.count(f"entries of {key[:80]!r}", MAX_ENTRIES, 8))]

    def tensor(self) -> tuple[str, tuple[int, ...], str, int]:
        """Name, shape as safetensors have it, type, offset."""
        name, n_dims = self.text(), self.number("<I")
        if not 1 <= n_dims <= 4:
            raise self.wrong(f"tensor {name[:80]!r} has {n_dims} dimensions")
        shape = tuple(reversed(struct.unpack(f"<{n_dims}Q", self.take(8 * n_dims))))
        if not all(0 < n < 1 << 40 for n in shape):
            raise self.wrong(f"tensor {name[:80]!r} has shape {list(shape)}")
        kind = self.number("<I")
        return name, shape, TYPES.get(kind, f"type {kind}"), self.number("<Q")

    def placed(self, infos, base: int, align: int) -> Iterator[tuple[str, TensorPlace]]:
        """Official name and place of every tensor, after all are known to lie in the file, each for itself."""
        spans, seen = [], set()
        for name, shape, kind, offset in infos:
            official = official_name(name)
            if official is None:
                raise self.wrong(f"tensor {name[:80]!r} does not belong to DeepSeek-V4")
            if name in seen:
                raise self.wrong(f"tensor {name[:80]!r} is there twice")
            seen.add(name)
            n_bytes = self.n_bytes(name, official, shape, kind)
            if offset % align:
                raise self.wrong(f"tensor {name[:80]!r} begins at byte {offset} of the data, no multiple of {align}")
            spans.append((base + offset, base + offset + n_bytes, name))
        spans.sort()
        for (_, end, name), (begin, _, other) in pairwise(spans):
            if begin < end:
                raise self.wrong(f"tensors {name[:80]!r} and {other[:80]!r} overlap")
        if spans and spans[-1][1] > self.size:
            raise self.wrong(f"truncated: tensor {spans[-1][2][:80]!r} ends at byte {spans[-1][1]} of {self.size}")
        for name, shape, kind, offset in infos:
            yield from _pieces(self.path, str(official_name(name)), shape, kind, base + offset)

    def n_bytes(self, name: str, official: str, shape: tuple[int, ...], kind: str) -> int:
        stacked = EXPERTS.fullmatch(official)
        if kind != "MXFP4" if stacked else kind not in READ:
            raise self.wrong(f"tensor {name[:80]!r} is {kind}; {NEEDED}", "make a store of the official weights")
        if stacked and len(shape) != 3:
            raise self.wrong(f"tensor {name[:80]!r} has shape {list(shape)}")
        values, n_bytes = (32, MXFP4_BYTES) if stacked else (READ[kind][2], _raw_bytes(kind))
        if shape[-1] % values:
            raise self.wrong(f"tensor {name[:80]!r}: rows of {shape[-1]} values are no whole blocks")
        return math.prod(shape) // values * n_bytes


def _raw_bytes(kind: str) -> int:
    """Of a block."""
    return {"F32": 4, "BF16": 2, "I64": 8}.get(kind) or PACKINGS[READ[kind][1]].raw


def _pieces(path: Path, official: str, shape, kind: str, offset: int) -> Iterator[tuple[str, TensorPlace]]:
    """A tensor's place; of stacked experts those of each, codes and scales."""
    stacked = EXPERTS.fullmatch(official)
    if not stacked:
        dtype, packing, _ = READ[kind]
        yield official, TensorPlace(path, offset, TensorSpec(dtype, shape), packing)
        return
    n, rows, cols = shape
    halves = {
        "weight": (TensorSpec("I8", (rows, cols // 2)), "mxfp4 codes"),
        "scale": (TensorSpec("F8_E8M0", (rows, cols // 32)), "mxfp4 scales"),
    }
    for expert in range(min(n, MAX_TENSORS)):
        at = offset + expert * rows * (cols // 32) * MXFP4_BYTES
        for half, (spec, packing) in halves.items():
            yield f"{stacked[1]}.{expert}.{stacked[2]}.{half}", TensorPlace(path, at, spec, packing)


def official_name(name: str) -> str | None:
    """That of stacked experts lacks the number; None where V4 has no such tensor. Draft blocks are layers behind the
    trunk's."""
    if name in GLOBALS:
        return GLOBALS[name]
    found = re.fullmatch(r"blk\.(\d{1,4})\.(.+)", name)
    if found is None:
        return None
    own = found[2] if found[2].startswith("nextn.") else OF_LAYER.get(found[2])
    return f"layers.{int(found[1])}.{own}" if own else None


def _layers(metadata: dict) -> int:
    """Of the trunk: draft blocks are counted and numbered behind them, and left out."""
    n, drafts = (metadata.get(f"{ARCHITECTURE}.{key}", 0) for key in ("block_count", "nextn_predict_layers"))
    return n - drafts if isinstance(n, int) and isinstance(drafts, int) else 0


def config(metadata: dict, vocab_size: int) -> dict:
    """The config.json that the metadata mean. What is missing is None, which no config may hold."""

    def of(key: str, default=None):
        return metadata.get(f"{ARCHITECTURE}.{key}", default)

    def first(key: str):
        value = of(key)
        return value[0] if isinstance(value, list) and value and len(set(value)) == 1 else value

    if of("expert_gating_func") != GATING:
        raise ModelError(f"{ARCHITECTURE}.expert_gating_func is {of('expert_gating_func')!r:.40}, V4 has {GATING}")
    layers = _layers(metadata)
    ratios = of("attention.compress_ratios")
    values = {
        "vocab_size": vocab_size, "hidden_size": of("embedding_length"), "num_hidden_layers": layers,
        "num_attention_heads": first("attention.head_count"), "head_dim": of("attention.key_length"),
        "qk_rope_head_dim": of("rope.dimension_count"), "q_lora_rank": of("attention.q_lora_rank"),
        "o_lora_rank": of("attention.output_lora_rank"), "o_groups": of("attention.output_group_count"),
        "moe_intermediate_size": first("expert_feed_forward_length"), "n_routed_experts": of("expert_count"),
        "num_experts_per_tok": of("expert_used_count"), "num_hash_layers": of("hash_layer_count"),
        "sliding_window": of("attention.sliding_window"), "index_n_heads": of("attention.indexer.head_count"),
        "index_head_dim": of("attention.indexer.key_length"), "index_topk": of("attention.indexer.top_k"),
        "hc_mult": of("hyper_connection.count"), "hc_sinkhorn_iters": of("hyper_connection.sinkhorn_iterations"),
        "hc_eps": _short(of("hyper_connection.epsilon")), "max_position_embeddings": of("context_length"),
        "num_nextn_predict_layers": 0, "rms_norm_eps": _short(of("attention.layer_norm_rms_epsilon")),
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id", 0),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id", 1),
        "rope_theta": _short(of("rope.freq_base")),
        "compress_rope_theta": _short(of("attention.compress_rope_freq_base")),
        "routed_scaling_factor": _short(of("expert_weights_scale")), "swiglu_limit": _short(first("swiglu_clamp_exp")),
        "compress_ratios": ratios[:layers] if isinstance(ratios, list) else ratios,
    }  # fmt: skip
    scaling = {
        "type": of("rope.scaling.type"), "factor": _short(of("rope.scaling.factor")),
        "beta_fast": _short(of("rope.scaling.yarn_beta_fast", 32.0)),
        "beta_slow": _short(of("rope.scaling.yarn_beta_slow", 1.0)),
        "original_max_position_embeddings": of("rope.scaling.original_context_length"),
    }  # fmt: skip
    return FIXED | values | {"rope_scaling": scaling, "quantization_config": dict(FIXED_QUANTIZATION)}


def _short(value):
    """A float32 as the decimal number that was meant: 1e-6, not 9.999999974752427e-07."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
