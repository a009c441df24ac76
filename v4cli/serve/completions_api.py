"""Completions: /v1/completions, a prompt as text or as token ids."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from v4cli.errors import RequestError
from v4cli.serve import asked as fields
from v4cli.serve.asked import Asked
from v4cli.serve.chat_api import usage_of
from v4cli.serve.dialect import COMMENT, Machine, new_id, openai_error, sse
from v4cli.serve.events import End, Event, Failed, Finish, Logprob, Text, Thinking


def read(body: dict) -> Asked:
    """RequestError for what cannot be understood."""
    first, *others = _prompts(body.get("prompt", ""))
    n_logprobs = fields.integer(body, "logprobs")
    asked = Asked(
        model=fields.model_of(body),
        prompt=first,
        thinking=False,
        max_tokens=fields.limit(body, "max_tokens"),
        stop=fields.stops(body.get("stop")),
        n=min(fields.integer(body, "n", least=1) or 1, fields.MOST_CHOICES),
        top_logprobs=None if n_logprobs is None else min(max(n_logprobs, 0), fields.MOST_TOP_LOGPROBS),
        stream=fields.boolean(body, "stream"),
        echo=fields.boolean(body, "echo"),
        token_ids=fields.boolean(body, "return_token_ids"),
        names_are_ids=fields.boolean(body, "return_tokens_as_token_ids"),
        grammar=_grammar(body),
        **fields.sampling(body),
    )
    return replace(asked, others=tuple(replace(asked, prompt=prompt) for prompt in others))


def _prompts(given: Any) -> list[str | tuple[int, ...]]:
    """One, or several: each a text or token ids."""

    def is_ids(prompt: Any) -> bool:
        return isinstance(prompt, list) and bool(prompt) and all(type(token) is int for token in prompt)

    prompts = given if isinstance(given, list) and not is_ids(given) else [given]
    if not prompts or not all(isinstance(prompt, str) or is_ids(prompt) for prompt in prompts):
        raise RequestError("prompt must be a text, a list of token ids, or a list of such prompts")
    if len(prompts) > fields.MOST_PROMPTS:
        raise RequestError(f"prompt must hold {fields.MOST_PROMPTS} prompts at most")
    return [prompt if isinstance(prompt, str) else tuple(prompt) for prompt in prompts]


def _grammar(body: dict) -> str | None:
    """As vLLM names it; the grammar of --constrain is llguidance's."""
    wanted = body.get("structured_outputs")
    grammar = wanted.get("grammar") if isinstance(wanted, dict) else None
    if grammar is None and wanted is not None:
        raise RequestError("structured_outputs must be an object with a grammar")
    if not isinstance(grammar, str | None):
        raise RequestError("structured_outputs.grammar must be text")
    return grammar


class CompletionsMachine(Machine):
    """Pieces of text, and the completion that they make up: of every prompt its choices."""

    def __init__(self, asked: Asked, model: str, prompts: Sequence[Sequence[int]], usage_asked_for: bool = False):
        """`prompts`: their token ids."""
        super().__init__(asked, model, sum(map(len, prompts)))
        self.id, self.prompts, self.usage_asked_for = new_id("cmpl-"), prompts, usage_asked_for
        self._choices = [_Choice() for _ in range(asked.n * len(prompts))]

    def begin(self) -> list[str]:
        return [self._chunk(i, "", **self._prompt(i)) for i in range(len(self._choices)) if self.asked.token_ids]

    def beat(self) -> list[str]:
        return [COMMENT]

    def take(self, choice: int, event: Event) -> list[str]:
        its = self._choices[choice]
        match event:
            case Text(text) | Thinking(text):
                its.text += text
                return [self._chunk(choice, text)]
            case Logprob():
                its.tokens.append((event, its.offset))
                its.offset += len(its.decoder.decode(event.token))
                return [self._chunk(choice, "", tokens=its.tokens[-1:])]
            case Finish():
                its.finish = event.reason
                return [self._chunk(choice, "", event.reason)]
        return []

    def end(self, end: End) -> list[str]:
        if isinstance(end, Failed):
            return [sse(openai_error(end)), "data: [DONE]\n\n"]
        self.usage = end
        chunk = sse(self._head() | {"choices": [], "usage": usage_of(end)})
        return [chunk] * self.usage_asked_for + ["data: [DONE]\n\n"]

    def _head(self) -> dict:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}

    def _chunk(self, choice: int, text: str, finish: str | None = None, tokens: "Sequence[_Told]" = (), **more) -> str:
        told = self._told(tokens) if tokens else {"logprobs": None}
        return sse(self._head() | {"choices": [{"index": choice, "text": text, "finish_reason": finish} | told | more]})

    def _told(self, tokens: "Sequence[_Told]") -> dict:
        """What was asked for of tokens."""
        said = [token.id for token, _ in tokens if not token.of_prompt]
        ids = {"token_ids": said} if self.asked.token_ids else {}
        told = None if self.asked.top_logprobs is None else _logprobs(tokens, self.asked.names_are_ids)
        return {"logprobs": told, **ids}

    def _prompt(self, choice: int) -> dict:
        return {"prompt_token_ids": list(self.prompts[choice // self.asked.n])} if self.asked.token_ids else {}

    def final(self) -> dict:
        choices = [
            {"index": i, "text": its.text, "finish_reason": its.finish} | self._told(its.tokens) | self._prompt(i)
            for i, its in enumerate(self._choices)
        ]
        return self._head() | {"choices": choices, "usage": usage_of(self.usage)}


_Told = tuple[Logprob, int]  # and where its text begins in that of its choice


@dataclass
class _Choice:
    text: str = ""
    tokens: list[_Told] = field(default_factory=list)
    offset: int = 0  # of the next token
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))
    finish: str | None = None


def _logprobs(entries: Sequence[_Told], by_id: bool) -> dict:
    """As vLLM tells them; `by_id`: with its names for tokens by their ids. Of the first token of a prompt nothing is
    known."""

    def name(token: bytes, id: int) -> str:
        return f"token_id:{id}" if by_id else token.decode("utf-8", "replace")

    tops = [{name(token, id): logprob for token, logprob, id in entry.top} for entry, _ in entries]
    return {
        "tokens": [name(entry.token, entry.id) for entry, _ in entries],
        "token_logprobs": [entry.logprob for entry, _ in entries],
        "top_logprobs": [None if entry.logprob is None else top for (entry, _), top in zip(entries, tops, strict=True)],
        "text_offset": [offset for _, offset in entries],
    }
