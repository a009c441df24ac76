"""The steps of CpuOps.self_attention one by one, named and typed as in the reference, so that each can be compared."""

import numpy as np
from v4kernels import native
from v4kernels.cpu import Buffer, CpuOps


class Steps(CpuOps):
    """The cpu op table, and the functions that its attention is made of."""

    def queries(self, attn, x: Buffer, turns: Buffer):
        q = self._take("q", x.rows, attn.heads * attn.head_dim)
        qr = self._take("qr", x.rows, attn.q_rank)
        native.checked(self._call.v4k_queries(attn.at, x.at, x.rows, turns.at, q.at, qr.at))
        return q, qr

    def append_window(self, attn, x: Buffer, turns: Buffer, kv) -> None:
        fresh = self._take("fresh", x.rows, attn.entry_bytes, np.uint8)  # joins the ring in attend
        native.checked(self._call.v4k_window_entries(attn.at, x.at, x.rows, turns.at, fresh.at))

    def append_compressed(self, compressor, x: Buffer, start: int, part) -> None:
        part.reserve(start + x.rows)
        native.checked(self._call.v4k_compress(compressor.at, x.at, start, x.rows, part.at))

    def select(self, indexer, x: Buffer, qr: Buffer, turns: Buffer, start: int, part) -> Buffer | None:
        if (start + x.rows) // 4 <= indexer.top_k:
            return None
        out = self._take("selected", x.rows, indexer.top_k, np.int32)
        keys = part.native
        code = self._call.v4k_select(
            indexer.at, x.at, qr.at, turns.at, start, x.rows, keys.entries, keys.scales, out.at
        )
        native.checked(code)
        return out

    def attend(self, attn, q: Buffer, turns: Buffer, start: int, kv, selected: Buffer | None) -> Buffer:
        out = self._take("heads", q.rows, q.width)
        fresh = self._buffers["fresh"]
        entries = kv.main.native.entries if kv.main else None
        chosen, k = (selected.at, selected.width) if selected else (None, 0)
        code = self._call.v4k_attend(
            attn.at, q.at, turns.at, start, q.rows, kv.native.ring, fresh.at, entries, attn.ratio, chosen, k, out.at
        )
        native.checked(code)
        return out

    def attention_output(self, attn, heads: Buffer) -> Buffer:
        out = self._take("out", heads.rows, attn.dim)
        native.checked(self._call.v4k_attention_output(attn.at, heads.at, heads.rows, out.at))
        return out
