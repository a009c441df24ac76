"""llama.cpp's own converter on a synthetic checkpoint: SOURCES CHECKPOINT OUT.gguf.

SOURCES: vendor/llama.cpp of the sdist of llama-cpp-python (0.3.36 knows DeepSeek-V4). The vocabulary is left out, as it
knows tokenizers by what they make of a text.
"""

import sys
from pathlib import Path

sources, checkpoint, out = sys.argv[1:]
sys.path[:0] = [sources, f"{sources}/gguf-py"]

import gguf  # noqa: E402
import torch  # noqa: E402
from conversion.deepseek import DeepseekV4Model  # noqa: E402

DeepseekV4Model.set_vocab = lambda self: self._set_vocab_none()
with torch.inference_mode():
    DeepseekV4Model(Path(checkpoint), gguf.LlamaFileType.MOSTLY_Q8_0, Path(out)).write()
