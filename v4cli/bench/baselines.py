"""Products of torch and bitsandbytes, what the kernels are shown beside; on this machine's CPU or on a card."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

Work = Callable[[], object]
Make = Callable[[int, int, int, str], tuple[Work, int]]


def torch_linear(dtype: torch.dtype) -> Make:
    """A dense layer of random weights: see `baselines`."""

    def make(rows: int, cols: int, tokens: int, device: str) -> tuple[Work, int]:
        w, x = (torch.randn(n, cols, device=device).to(dtype) for n in (rows, tokens))
        return lambda: F.linear(x, w), w.nbytes

    return make


def nf4(rows: int, cols: int, tokens: int, device: str) -> tuple[Work, int]:
    """Linear4bit, with scales per 64 inputs that are quantized too: its default."""
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(cols, rows, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4").to(device)
    x = torch.randn(tokens, cols, device=device).bfloat16()
    return lambda: layer(x), rows * cols // 2 + rows * cols // 64


def llm_int8(rows: int, cols: int, tokens: int, device: str) -> tuple[Work, int]:
    """Linear8bitLt, with a scale per row and no outliers: LLM.int8 at its fastest."""
    from bitsandbytes.nn import Linear8bitLt

    layer = Linear8bitLt(cols, rows, bias=False, has_fp16_weights=False).to(device)
    x = torch.randn(tokens, cols, device=device).half()
    return lambda: layer(x), rows * cols + 4 * rows


def baselines() -> dict[str, Make | str]:
    """By name, what makes of rows, cols, tokens and a torch device the call of a layer and the bytes of weights that it
    reads; or why there is nothing that does."""
    found: dict[str, Make | str] = {"torch bf16": torch_linear(torch.bfloat16)}
    theirs: dict[str, Make] = {"bitsandbytes nf4": nf4, "bitsandbytes int8": llm_int8}
    try:
        import bitsandbytes.nn  # noqa: F401
    except ImportError:
        return found | dict.fromkeys(theirs, "bitsandbytes is not installed: pip install 'v4cli[gpu]'")
    except Exception as error:  # it looks for GPUs and libraries when it is imported
        return found | dict.fromkeys(theirs, reason(error))
    return found | theirs


def reason(error: Exception) -> str:
    """Why a layer cannot be measured, in one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]
