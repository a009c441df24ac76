"""Keeps tool calls well-formed while they are sampled: a grammar of V4's tool block (spec 5.4) made of the tools'
schemas, and from it the tokens that may come next. Needs llguidance.
"""

import json
from collections.abc import Iterator, Sequence

import numpy as np

from v4cli.chat.dsml import MAX_CALLS
from v4cli.chat.special import DSML
from v4cli.chat.tokenizer import Tokenizer
from v4cli.errors import UsageError

try:
    import llguidance
except ImportError:
    raise UsageError("--constrain needs llguidance", "pip install 'v4cli[grammar]'") from None

MAX_PARAMETERS = 64  # of one tool: a bit each in llguidance's parametric rules
AS_TRAINED = {"item_separator": ", ?", "key_separator": ": ?", "whitespace_flexible": False}
NO_SURROGATES = {"json_allowed_escapes": 'nrbtf\\"'}  # "\ud800" alone is no text
JSON_STYLE = {"x-guidance": AS_TRAINED | NO_SURROGATES | {"lenient": True}}


class Guide:
    """A tokenizer's vocabulary as llguidance wants it; making it takes half a second for V4's."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        """`vocab_size`: of the model's logits, which may be more than the tokenizer has."""
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.dsml = tokenizer.special_id(DSML)
        wrapper = llguidance.TokenizerWrapper(_Vocabulary(tokenizer))
        self._ll = llguidance.LLTokenizer(wrapper, n_vocab=vocab_size)

    def constraint(self, tools: list[dict]) -> "Constraint":
        """For one answer with these tools."""
        return Constraint(self, grammar(tools, self.dsml))

    def matcher(self, text: str) -> llguidance.LLMatcher:
        return llguidance.LLMatcher(self._ll, llguidance.LLMatcher.grammar_from_lark(text), log_level=0)


class _Vocabulary:
    """What llguidance.TokenizerWrapper asks for."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self.eos_token_id = tokenizer, tokenizer.eos_id
        self.special_token_ids = sorted(tokenizer.special_ids)
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        for i in self.special_token_ids:
            self.tokens[i] = tokenizer.decode([i]).encode()

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


class Constraint:
    """The mask of one answer: nothing is forbidden until a tool block opens, then all that would not be a call."""

    def __init__(self, guide: Guide, text: str):
        self._guide, self._text = guide, text
        self._matcher: llguidance.LLMatcher | None = None
        self._seen, self._before = 0, b""

    def allowed(self, tokens: Sequence[int]) -> np.ndarray | None:
        """(vocab,) bool: what may follow the tokens sampled so far; None if anything may."""
        for token in tokens[self._seen :]:
            self._take(token)
        self._seen = len(tokens)
        if self._matcher is None or self._matcher.is_error():
            return None
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, count=self._guide.vocab_size, bitorder="little").view(bool)

    def _take(self, token: int) -> None:
        if self._matcher is not None:
            self._matcher.consume_token(token)
        elif token == self._guide.dsml and self._before.endswith(b"<"):
            self._matcher = self._guide.matcher(self._text)
        self._before = self._guide.tokenizer.token_bytes(token)


def grammar(tools: list[dict], dsml: int) -> str:
    """The block after its opening `<｜DSML｜`, in llguidance's Lark; `dsml` is the id of that token."""
    bar = f"<[{dsml}]>"
    calls, rules = [], []
    for i, tool in enumerate(tools):
        function = tool["function"]
        if _fits_a_tag(function["name"]):
            calls.append(f"call{i}")
            rules += _call(i, function["name"], function.get("parameters") or {}, bar)
    head = (
        # "\n<" as one lexeme: the lexer takes the longest and never goes back, which "\n" before "<" would need.
        f'start: "tool_calls>\\n<" invoke ("\\n<" invoke){{0,{MAX_CALLS - 1}}} "\\n</" {bar} "tool_calls>"',
        f'invoke: {bar} "invoke name=\\"" ({" | ".join(calls)}) "\\n</" {bar} "invoke>"',
        # Text goes on over any "</" but the one that the special token makes a closer.
        f'text: upto+ {bar} "parameter>"',
        "upto[lazy]: UPTO",
        f"UPTO: /(?s:.)*<\\// & ~/{DSML}(?s:.*)/",
        f'end: "</" {bar} "parameter>"',
    )
    return "\n".join([*head, *rules]) + "\n"


def _call(i: int, name: str, schema: dict, bar: str) -> Iterator[str]:
    """Rules of one tool: its parameters in any order, each once at most, the required ones present."""
    properties = {key: value for key, value in (schema.get("properties") or {}).items() if _fits_a_tag(key)}
    required = [key for key in properties if key in (schema.get("required") or ())]
    if not properties:
        yield f'call{i}: {_quoted(name)} "\\">" "\\n"?'
        return
    keys = (required + [key for key in properties if key not in required])[:MAX_PARAMETERS]
    empty = "" if required else f' | {_quoted(name)} "\\">\\n"'
    yield f'call{i}: {_quoted(name)} "\\">" some{i}::0{empty}'
    yield f'some{i}::_: ""' + (f" %if is_ones([0:{len(required)}])" if required else "")
    for bit, key in enumerate(keys):
        for is_text, value in _values(properties[key], schema):
            tag = f'"\\n<" {bar} "parameter name=" {_quoted(_quoted(key))} " string=\\"{str(is_text).lower()}\\">"'
            yield f"  | {tag} {value} some{i}::set_bit({bit}) %if bit_clear({bit})"


def _values(schema, root: dict) -> Iterator[tuple[bool, str]]:
    """How a parameter may be given: (as text?, rule), by its type; both ways if that is open."""
    schema = schema if isinstance(schema, dict) else {}
    kinds = schema.get("type", ())
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    choices = schema.get("enum")
    if "string" in kinds or not kinds:
        texts = [text for text in choices if isinstance(text, str)] if isinstance(choices, list) else None
        if texts is None:
            yield True, "text"
        elif texts:
            yield True, f"({' | '.join(map(_quoted, texts))}) end"
    if kinds != ["string"]:
        yield False, f"%json {_json_schema(schema, [kind for kind in kinds if kind != 'string'], root)} end"


def _json_schema(schema: dict, kinds: list[str], root: dict) -> str:
    """A schema that llguidance takes; of one that it does not, only the type."""
    kinds = {"type": kinds} if kinds else {}
    whole = {key: root[key] for key in ("$defs", "definitions") if key in root} | schema | kinds | JSON_STYLE
    text = json.dumps(whole)
    wrong = llguidance.LLMatcher.validate_grammar(llguidance.LLMatcher.grammar_from_json_schema(text))
    return json.dumps(kinds | JSON_STYLE) if wrong and not wrong.startswith("WARNING") else text


def _fits_a_tag(name) -> bool:
    return isinstance(name, str) and bool(name) and not set(name) & set('"<>｜\n')


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
