"""What is sent to a server for the tokens after a prompt, and what its stream says of them, in the words of each kind
of server. Token ids go out and come back: nothing of a prompt or an answer is left to it.

`Completions` is /v1/completions as vLLM has it (`return_token_ids`, since 0.10.2) and `v4 serve` too; `Generate` is
SGLang's own /generate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from v4cli.engine.sampler import Sampling
from v4cli.errors import NetworkError

NAME = "token_id:"  # before the id, where vLLM's dialect names a token
Likeliest = tuple[tuple[int, float], ...]  # tokens with their log-probabilities, the likeliest first


@dataclass(frozen=True)
class Wanted:
    """An answer: the tokens before it, how its own are drawn, how many there may be, and which of them end it."""

    ids: Sequence[int]
    sampling: Sampling
    limit: int
    stop_ids: Sequence[int]
    grammar: str | None = None  # of the whole answer, in llguidance's Lark
    n_likeliest: int = 0  # tokens whose log-probabilities are told beside each


@dataclass(frozen=True)
class Piece:
    """New tokens with their log-probabilities, and those of the likeliest at the place of each, if they were asked for;
    `finish`: why there are no more, if the server says so; `cached`: tokens
    of the prompt that it did not compute, once it says so."""

    ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    finish: str | None = None
    likeliest: Sequence[Likeliest] = ()
    cached: int | None = None


class Wire(Protocol):
    """One answer of one kind of server; `path` is where it is asked for."""

    path: str

    def body(self, model: str, wanted: Wanted) -> dict[str, Any]:
        """Of the request. NetworkError for what this kind of server does not offer."""

    def read(self, event: dict[str, Any]) -> Piece:
        """What an event of the stream says. NetworkError for what makes no sense."""


class Completions:
    """vLLM, `v4 serve`, and whatever answers like them."""

    path = "/v1/completions"
    _n_likeliest = 0

    def body(self, model: str, wanted: Wanted) -> dict[str, Any]:
        by = wanted.sampling
        body: dict[str, Any] = {
            "model": model, "prompt": list(wanted.ids), "max_tokens": wanted.limit, "temperature": by.temperature,
            "top_p": by.top_p, "top_k": by.top_k, "min_p": by.min_p, "stop_token_ids": list(wanted.stop_ids),
            "stream": True, "stream_options": {"include_usage": True}, "logprobs": wanted.n_likeliest,
            "return_token_ids": True, "skip_special_tokens": False,
        }  # fmt: skip
        body |= {} if by.seed is None else {"seed": by.seed}
        body |= {"return_tokens_as_token_ids": True} if wanted.n_likeliest else {}
        self._n_likeliest = wanted.n_likeliest
        return body | ({} if wanted.grammar is None else {"structured_outputs": {"grammar": wanted.grammar}})

    def read(self, event: dict[str, Any]) -> Piece:
        cached = None
        if isinstance(usage := event.get("usage"), dict):
            details = usage.get("prompt_tokens_details")
            cached = details.get("cached_tokens") if isinstance(details, dict) else None
        choices = event.get("choices") or [{}]
        choice = choices[0] if isinstance(choices, list) and isinstance(choices[0], dict) else {}
        ids, logprobs = choice.get("token_ids") or [], (choice.get("logprobs") or {}).get("token_logprobs") or []
        if choice.get("text") and "token_ids" not in choice and not logprobs:
            return Piece(
                finish=choice.get("finish_reason"), cached=_count(cached)
            )  # text of tokens that were told before
        told = (choice.get("logprobs") or {}).get("top_logprobs") or [] if self._n_likeliest else []
        pairs = [[(_named(name), logprob) for name, logprob in one.items()] for one in told]
        likeliest = _likeliest(pairs, len(ids), self._n_likeliest)
        return Piece(_ids(ids), _logprobs(logprobs, len(ids)), choice.get("finish_reason"), likeliest, _count(cached))


class Generate:
    """SGLang, whose events tell all tokens so far, or only the new ones, as it was started."""

    path = "/generate"

    def __init__(self) -> None:
        self._n_told = self._n_likeliest = 0

    def body(self, model: str, wanted: Wanted) -> dict[str, Any]:
        if wanted.grammar is not None:
            raise NetworkError("SGLang takes no grammar of this kind", "drop --schema, --format or --constrain")
        by = wanted.sampling
        how: dict[str, Any] = {
            "max_new_tokens": wanted.limit, "temperature": by.temperature, "top_p": by.top_p, "top_k": by.top_k or -1,
            "min_p": by.min_p, "stop_token_ids": list(wanted.stop_ids), "skip_special_tokens": False,
        }  # fmt: skip
        how |= {} if by.seed is None else {"sampling_seed": by.seed}
        self._n_likeliest = wanted.n_likeliest
        more = {"top_logprobs_num": wanted.n_likeliest} if wanted.n_likeliest else {}
        return {"input_ids": list(wanted.ids), "sampling_params": how, "return_logprob": True, "stream": True} | more

    def read(self, event: dict[str, Any]) -> Piece:
        about = event.get("meta_info")
        if not isinstance(about, dict):
            raise NetworkError("the server's answer has no meta_info", "is it SGLang's?")
        told, total = about.get("output_token_logprobs") or [], about.get("completion_tokens", 0)
        n_new, self._n_told = max(total - self._n_told, 0), max(total, self._n_told)
        if n_new > len(told):
            raise NetworkError("the server tells fewer tokens than it counts")
        new = told[len(told) - n_new :]
        finish = about.get("finish_reason")
        finish = finish.get("type") if isinstance(finish, dict) else finish
        ids = _ids([entry[1] for entry in new])
        cached = _count(about.get("cached_tokens"))
        tops = (about.get("output_top_logprobs") or [])[len(told) - n_new :] if self._n_likeliest else []
        pairs = [[(entry[1], entry[0]) for entry in one] for one in tops]
        likeliest = _likeliest(pairs, len(ids), self._n_likeliest)
        return Piece(ids, _logprobs([entry[0] for entry in new], len(ids)), finish, likeliest, cached)


def _count(value: Any) -> int | None:
    return value if type(value) is int else None


def _ids(values: Any) -> list[int]:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise NetworkError("the server's token ids are no numbers")
    return values


def _named(name: str) -> int:
    """The id that a name of a token is. NetworkError."""
    number = name.removeprefix(NAME)
    if number == name or not number.isdecimal():
        raise NetworkError("the server does not name the likeliest tokens by their ids", "--logprobs 0")
    return int(number)


def _likeliest(pairs: list[list[tuple[int, float]]], n: int, most: int) -> list[Likeliest]:
    """For each of n tokens the `most` likeliest; servers may add the sampled one. NetworkError."""
    if not most:
        return []
    if len(pairs) != n:
        raise NetworkError("the server does not tell the likeliest tokens", "--logprobs 0")
    found = []
    for one in pairs:
        _ids([token for token, _ in one])
        _logprobs([logprob for _, logprob in one], len(one))
        found.append(tuple(sorted(one, key=lambda pair: -pair[1])[:most]))
    return found


def _logprobs(values: Any, n: int) -> list[float]:
    if len(values) != n or not all(type(value) in (int, float) for value in values):
        raise NetworkError("the server does not tell the log-probability of every token")
    return [float(value) for value in values]
