"""Completions: /v1/completions, a prompt as text or as token ids."""

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
        **fields.sampling(body),
    )


class CompletionsMachine(Machine):
    """Pieces of text, and the completion that they make up."""

    def __init__(self, asked: Asked, model: str, n_prompt: int, usage_asked_for: bool = False):
        super().__init__(asked, model, n_prompt)
        self.id, self.usage_asked_for = new_id("cmpl-"), usage_asked_for
        self._choices: list[dict] = [{"text": "", "logprobs": [], "finish": None} for _ in range(asked.n)]

    def begin(self) -> list[str]:
        if not self.asked.echo:
            return []
        return [text for i in range(self.asked.n) for text in self.take(i, Text(str(self.asked.prompt)))]

    def beat(self) -> list[str]:
        return [COMMENT]

    def take(self, choice: int, event: Event) -> list[str]:
        its = self._choices[choice]
        match event:
            case Text(text) | Thinking(text):
                its["text"] += text
                return [self._chunk(choice, text)]
            case Logprob():
                its["logprobs"].append(event)
                return [self._chunk(choice, "", logprobs=[event])]
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

    def _chunk(self, choice: int, text: str, finish: str | None = None, logprobs: list[Logprob] | None = None) -> str:
        about = {"index": choice, "text": text, "finish_reason": finish}
        about["logprobs"] = _logprobs(logprobs) if logprobs else None
        return sse(self._head() | {"choices": [about]})

    def final(self) -> dict:
        choices = [
            {
                "index": i, "text": its["text"], "finish_reason": its["finish"],
                "logprobs": None if self.asked.top_logprobs is None else _logprobs(its["logprobs"]),
            }
            for i, its in enumerate(self._choices)
        ]  # fmt: skip
        return self._head() | {"choices": choices, "usage": usage_of(self.usage)}


def _logprobs(entries: list[Logprob]) -> dict:
    return {
        "tokens": [_text(entry.token) for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [{_text(token): logprob for token, logprob in entry.top} for entry in entries],
    }


def _text(token: bytes) -> str:
    return token.decode("utf-8", "replace")
