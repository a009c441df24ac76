"""A session that says what it is told to, and the words of tool calls."""

from v4cli.chat.special import PromptBuilder
from v4cli.engine.generation import Step

D = "｜DSML｜"
CLOSE = f"</{D}tool_calls>"


def invoke(name: str, closed: bool = True, **values: str) -> str:
    given = "".join(
        f'<{D}parameter name="{k}" string="{"false" if v[:1] in "[{0123456789" else "true"}">{v}</{D}parameter>\n'
        for k, v in values.items()
    )
    return f'<{D}invoke name="{name}">\n{given}' + (f"</{D}invoke>\n" if closed else "")


def block(*calls: str, close: str = CLOSE) -> str:
    return f"\n\n<{D}tool_calls>\n{''.join(calls)}{close}"


class Scripted:
    """A session that says what it is told to: token ids, or text, for each turn; then the end of the turn."""

    title = ""
    prefixes = None

    def __init__(self, engine, tokenizer, turns):
        self.engine, self.tokenizer, self.stats = engine, tokenizer, engine.session().stats
        self.turns, self.tokens, self.samplings, self.taken = iter(turns), [], [], 0

    def sync(self, tokens, progress, cancelled, anchors) -> bool:
        assert tokens[: len(self.tokens)] == self.tokens  # what was fed is never taken back
        self.tokens = list(tokens)
        return True

    def generate(self, sampling, limit, stop_tokens, cancelled, *_):
        self.samplings.append(sampling)
        for token in self._ids(next(self.turns)):
            if cancelled():
                return
            self.taken += 1
            yield Step(token, -0.5, "stop" if token in stop_tokens else None)
            self.tokens.append(token)

    def _ids(self, words):
        if not isinstance(words, str):
            yield from words
        out = PromptBuilder()
        out.markup(words if isinstance(words, str) else "")
        yield from self.tokenizer.encode_prompt(out.build())
        yield self.tokenizer.eos_id
