"""Completions: /v1/completions, a prompt as text or as token ids."""

from collections.abc import Sequence

from v4cli.errors import RequestError
from v4cli.serve import asked as fields
from v4cli.serve.asked import Asked
from v4cli.serve.chat_api import usage_of
from v4cli.serve.dialect import COMMENT, Machine, new_id, openai_error, sse
from v4cli.serve.events import End, Event, Failed, Finish, Logprob, Text, Thinking


def read(body: dict) -> Asked:
    """RequestError for what cannot be understood."""
    prompt = body.get("prompt", "")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    is_ids = isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt)
    if not isinstance(prompt, str) and not is_ids:
        raise RequestError("prompt must be one text, or one list of token ids")
    echo = fields.boolean(body, "echo")
    if echo and is_ids:
        raise RequestError("echo: there is no text to repeat in a prompt of token ids")
    n_logprobs = fields.integer(body, "logprobs")
    return Asked(
        model=fields.model_of(body),
        prompt=prompt if isinstance(prompt, str) else tuple(prompt),
        thinking=False,
        max_tokens=fields.limit(body, "max_tokens"),
        stop=fields.stops(body.get("stop")),
        n=min(fields.integer(body, "n", least=1) or 1, fields.MOST_CHOICES),
        top_logprobs=None if n_logprobs is None else min(max(n_logprobs, 0), fields.MOST_TOP_LOGPROBS),
        stream=fields.boolean(body, "stream"),
        echo=echo,
        token_ids=fields.boolean(body, "return_token_ids"),
        names_are_ids=fields.boolean(body, "return_tokens_as_token_ids"),
        grammar=_grammar(body),
        **fields.sampling(body),
    )


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
    """Pieces of text, and the completion that they make up."""

    def __init__(
        self, asked: Asked, model: str, n_prompt: int, usage_asked_for: bool = False, prompt_ids: Sequence[int] = ()
    ):
        super().__init__(asked, model, n_prompt)
        self.id, self.prompt_ids, self.usage_asked_for = new_id("cmpl-"), list(prompt_ids), usage_asked_for
        self._choices: list[dict] = [{"text": "", "tokens": [], "finish": None} for _ in range(asked.n)]

    def begin(self) -> list[str]:
        its, chunks = self.asked, []
        for i in range(its.n):
            chunks += [self._chunk(i, "", **self._prompt())] if its.token_ids else []
            chunks += self.take(i, Text(str(its.prompt))) if its.echo else []
        return chunks

    def beat(self) -> list[str]:
        return [COMMENT]

    def take(self, choice: int, event: Event) -> list[str]:
        its = self._choices[choice]
        match event:
            case Text(text) | Thinking(text):
                its["text"] += text
                return [self._chunk(choice, text)]
            case Logprob():
                its["tokens"].append(event)
                return [self._chunk(choice, "", tokens=[event])]
            case Finish():
                its["finish"] = event.reason
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

    def _chunk(self, choice: int, text: str, finish: str | None = None, tokens: Sequence[Logprob] = (), **more) -> str:
        told = self._told(tokens) if tokens else {"logprobs": None}
        return sse(self._head() | {"choices": [{"index": choice, "text": text, "finish_reason": finish} | told | more]})

    def _told(self, tokens: Sequence[Logprob]) -> dict:
        """What was asked for of tokens."""
        ids = {"token_ids": [token.id for token in tokens]} if self.asked.token_ids else {}
        told = None if self.asked.top_logprobs is None else _logprobs(tokens, self.asked.names_are_ids)
        return {"logprobs": told, **ids}

    def _prompt(self) -> dict:
        return {"prompt_token_ids": self.prompt_ids} if self.asked.token_ids else {}

    def final(self) -> dict:
        choices = [
            {"index": i, "text": its["text"], "finish_reason": its["finish"]}
            | self._told(its["tokens"])
            | self._prompt()
            for i, its in enumerate(self._choices)
        ]
        return self._head() | {"choices": choices, "usage": usage_of(self.usage)}


def _logprobs(entries: Sequence[Logprob], by_id: bool) -> dict:
    """As vLLM tells them; `by_id`: with its names for tokens by their ids."""

    def name(token: bytes, id: int) -> str:
        return f"token_id:{id}" if by_id else token.decode("utf-8", "replace")

    return {
        "tokens": [name(entry.token, entry.id) for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [{name(token, id): logprob for token, logprob, id in entry.top} for entry in entries],
    }
