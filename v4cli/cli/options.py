"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from v4cli import paths

DEFAULT_MODEL = {
    "default_factory": paths.default_model,
    "show_default": "the pulled model if exactly one is complete, else nano",
}
Model = Annotated[str, typer.Option("--model", "-m", help="A name from v4 ls, or a folder.", **DEFAULT_MODEL)]
ChatModel = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A name from v4 ls, or a folder.", show_default=DEFAULT_MODEL["show_default"]),
]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A name from v4 ls, or a folder.")]
MODEL_OR_RELEASE = "A name from v4 ls, a folder, or a release that need not be here (flash, pro)."
Backend = Annotated[str | None, typer.Option(help="cpu (int8 kernels; default) or reference (plain torch).")]
Numerics = Annotated[
    str | None, typer.Option(help="Of the reference: exact (fp32; default) or official (simulated quantization).")
]
KvDir = Annotated[
    Path | None,
    typer.Option(envvar="V4_KV_DIR", help="Keep the KV cache in a file in this folder, so that it may exceed the RAM."),
]
Ram = Annotated[
    str | None,
    typer.Option(envvar="V4_RAM", help="Memory to use, like 12G; experts that do not fit are read on demand."),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither use nor store computed prefixes (v4 sessions).")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
