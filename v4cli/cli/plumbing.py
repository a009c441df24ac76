"""`v4 score`, `v4 render`, `v4 parse`: stable plumbing for scripts and checks."""

import re
from pathlib import Path

from v4cli import jsonfile
from v4cli.clean import visible
from v4cli.cli import output
from v4cli.cli.progress import waiting
from v4cli.cli.said import read_text
from v4cli.errors import RequestError, UsageError
from v4cli.files import open_own
from v4cli.store import library

API_FIELDS = {"reasoning_effort", "response_format", "thinking", "tool_choice", "tools"}


def score_tokens(
    model: str, ids: Path | None, file: Path | None, logits: Path | None, numerics, backend, chunk
) -> None:
    """Log-probability of every token after the first, their mean NLL and perplexity."""
    if (ids is None) == (file is None):
        raise UsageError("give exactly one of --ids and --file")
    folder = library.model_folder(model)
    tokens = _ids(ids) if ids is not None else None
    if tokens is None:
        from v4cli.chat.special import BOS, PromptBuilder
        from v4cli.chat.tokenizer import Tokenizer
        from v4cli.model.config import V4Config

        config, tokenizer = V4Config.load(folder), Tokenizer.from_file(folder / "tokenizer.json")
        tokenizer.check(config, folder / "tokenizer.json")
        whole = PromptBuilder()
        whole.special(BOS)
        whole.text(read_text(file))
        tokens = tokenizer.encode_prompt(whole.build(), config.max_position_embeddings + 1)
    if len(tokens) < 2:
        raise UsageError("scoring needs at least two tokens")
    import numpy as np

    from v4cli.engine.engine import Engine

    with waiting(f"loading {folder}"):
        engine = Engine.open(folder, backend, numerics)
    session = engine.session()
    rows, logprobs = [], []
    tokens = session.checked(tokens)
    for i in range(0, len(tokens), chunk):
        part = session.feed(tokens[i : i + chunk], all_logits=True)
        targets = tokens[i + 1 : i + 1 + len(part)]
        scores = part[: len(targets)].astype(np.float64)
        top = scores.max(-1)
        norm = top + np.log(np.exp(scores - top[:, None]).sum(-1))
        logprobs += (scores[np.arange(len(targets)), targets] - norm).tolist()
        if logits is not None:
            rows.append(part)
    if logits is not None:
        with open_own(logits) as out:
            np.savez(out, ids=np.array(tokens, np.int64), logits=np.concatenate(rows).astype(np.float32))
    nll = -sum(logprobs) / len(logprobs)
    perplexity = float(np.exp(min(nll, 700.0)))
    output.json_page({"tokens": len(tokens), "nll": nll, "perplexity": perplexity, "logprobs": logprobs})


def _ids(path: Path) -> list[int]:
    words = re.split(r"[,\s]+", read_text(path).strip())
    bad = next((word for word in words if not re.fullmatch(r"[0-9]{1,9}", word)), None)
    if bad is not None:
        raise UsageError(f"{path}: {bad[:40]!r} is not a token id")
    return [int(word) for word in words]


def render_request(source: Path, contract: str, model: str, ids: bool, tokenizer: Path | None) -> None:
    """The prompt of a request, and its token ids."""
    from v4cli.chat.encoding import encode_april
    from v4cli.chat.requests import CONTRACTS, FIELDS, encode_request
    from v4cli.chat.tokenizer import Tokenizer

    if contract not in CONTRACTS:
        raise UsageError(f"--contract must be one of {', '.join(CONTRACTS)}")
    request = jsonfile.parse(read_text(source), str(source), RequestError)
    if not isinstance(request, dict) or "messages" not in request:
        raise RequestError(f"{source}: must be an object with messages")
    if contract == "april":
        kwargs = request.get("kwargs", {})
        known = ("thinking_mode", "drop_thinking", "reasoning_effort", "context", "add_default_bos_token")
        if not isinstance(kwargs, dict) or not set(kwargs) <= set(known):
            raise RequestError(f"{source}: kwargs may hold {', '.join(known)}")
        if unread := sorted(request.keys() & API_FIELDS):
            hint = "tools and response_format stand in a message, the rest in kwargs; or use --contract 0731"
            raise RequestError(f"{source}: the april encoder does not read {unread[0]} here", hint)
        prompt = encode_april(request["messages"], **kwargs)
    else:
        prompt = encode_request(request, contract).prompt
        if unread := sorted(request.keys() - FIELDS):
            output.note(visible(f"v4: {source}: not read: {', '.join(unread)[:200]}"))
    out: dict = {"prompt": prompt.text}
    if ids or tokenizer is not None:
        path = tokenizer or library.model_folder(model) / "tokenizer.json"
        out["ids"] = Tokenizer.from_file(path).encode_prompt(prompt)
    output.json_line(out)


def parse_text(source: Path, thinking: bool) -> None:
    """The assistant message in sampled text, with what is wrong with its calls; of a block without any, its text."""
    from v4cli.chat.messages import with_faults
    from v4cli.chat.parser import StreamParser

    parser, text = StreamParser(thinking), read_text(source)
    parser.push(text)
    parser.finish()
    if rest := text[len(text) - parser.unread :].strip():
        output.note(f"v4: left out: {len(rest):,} characters after the end of the block of calls")
    message = with_faults(parser.message(), parser.faults)
    output.json_line(message | ({"tool_block": parser.tool_block} if "fault" in message else {}))
