"""`v4 calibrate`: what a model's experts are given, for rounding them to low bits."""

import shlex
import time
from pathlib import Path

from v4cli.cli import output, progress
from v4cli.errors import UsageError
from v4cli.store import kinds, library
from v4cli.words import span


def calibrate_model(model: str, files: list[Path], tokens: int, out: Path | None, force: bool, as_json: bool) -> None:
    """Make the file, or go on making it; UsageError for a store whose experts have been rounded already, and for a file
    that is there, unless by `force`."""
    from v4cli.calibrate import layers, texts
    from v4cli.chat.tokenizer import Tokenizer
    from v4cli.store.calibration import Calibration
    from v4cli.store.store import open_model

    folder = library.model_folder(model)
    opened = open_model(folder)
    out = Path(f"{kinds.model_name(folder)}.calibration") if out is None else out
    if out.exists() and not force:  # stores that were rounded by it name it
        raise UsageError(f"{out} is there already", "give another file with -o, or --force")
    if not layers.of_model(opened):
        raise UsageError(f"{model}: its experts have been rounded to low bits", "calibrate what it was made from")
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    ids = texts.of_files(tokenizer, files, tokens) if files else texts.generated(tokenizer, tokens)
    begun, n = time.monotonic(), sum(map(len, ids))
    with progress.Units(f"calibrate {model}") as bar:
        layers.calibrate(opened, ids, out, bar)
    made = Calibration.open(out)
    seconds = time.monotonic() - begun
    about = {"path": str(out), "sha256": made.sha256, "tokens": n, "bytes": out.stat().st_size, "seconds": seconds}
    if as_json:
        output.json_page(about)
        return
    output.answer(f"{out}: {n:,} tokens, {output.size(about['bytes'])}, in {span(seconds)}\n")
    output.note(f"v4 quantize SRC DST --quant q3 --calibration {shlex.quote(str(out))} uses it")
