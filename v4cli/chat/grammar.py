"""Keeps tool calls well-formed while they are sampled: a grammar of V4's tool block (spec 5.4) made of the tools'
schemas, and from it the tokens that may come next. Needs llguidance.

A tool lists its parameters under `properties`: others may be given if it says so, or says something that may mean so. A
tool that no grammar can be made for is free to be called with anything, and named.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from v4cli.chat import schemas
from v4cli.chat.dsml import CLOSER, MAX_CALLS
from v4cli.chat.schemas import parameters, shown
from v4cli.chat.special import DSML
from v4cli.chat.tokenizer import Tokenizer
from v4cli.errors import RequestError, UsageError

try:
    import llguidance
    from llguidance import LLParserLimits

    from v4cli.chat.json_grammar import COMMON, MAX_KEYS, Forms, Rules, TooLarge, quoted
except ImportError:
    raise UsageError("--constrain needs llguidance", "pip install 'v4cli[grammar]'") from None

MAX_NAME = 300  # characters of a name in a tag
MAX_GRAMMAR = 2_000_000  # characters
MAX_CHOICES = 20_000  # ways to go on at one place
MOST_PLACES = 200  # of a schema that are looked at for what is wrong
ALONE = "Pointer "  # begins what is said of references into a schema of which there is a part only
ANY_OF = {"coerce_one_of": True}
LENIENT = {"lenient": True, **ANY_OF}
COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # else blanks without end
Note = Callable[[str], None]


class Guide:
    """A tokenizer's vocabulary as llguidance wants it; making it takes half a second for V4's."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, note: Note = lambda text: None):
        """`vocab_size`: of the model's logits, which may be more than the tokenizer has. `note` is told, once, what is
        not constrained."""
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.dsml = tokenizer.special_id(DSML)
        wrapper = llguidance.TokenizerWrapper(_Vocabulary(tokenizer))
        self._ll = llguidance.LLTokenizer(wrapper, n_vocab=vocab_size)
        self._note, self._noted = note, set()
        self._last = ("", "")  # tools and their grammar

    def constraint(self, tools: list[dict]) -> "Constraint":
        """For one answer with these tools, whose schemas are checked."""
        key = json.dumps(tools)
        if key != self._last[0]:
            self._last = (key, self.grammar(tools))
        return Constraint(self, self._last[1])

    def grammar(self, tools: list[dict]) -> str:
        """Of a block of calls. Tools that must be left free for it are noted."""
        functions = [tool["function"] for tool in tools]
        calls = {i: self._call(i, function) for i, function in enumerate(functions)}
        if not self.refusal(text := _block(calls, self.dsml)):
            return text
        for i, function in enumerate(functions):
            if why := self.refusal(_block({i: calls[i]}, self.dsml)):
                calls[i] = self._free(i, function, why)
        largest, n_free = sorted(calls, key=lambda i: -sum(map(len, calls[i]))), 0
        while self.refusal(text := _block(calls, self.dsml)) and n_free < len(calls):
            for i in largest[n_free : 2 * n_free + 1]:
                calls[i] = self._free(i, functions[i], "the tools are too much for one grammar")
            n_free = 2 * n_free + 1
        return text

    def _call(self, i: int, function: dict) -> list[str]:
        """The rules of one tool."""
        try:
            return _call(i, function, self.dsml)
        except _Unfit as unfit:
            return self._free(i, function, str(unfit))

    def _free(self, i: int, function: dict, why: str) -> list[str]:
        self.note(f"--constrain leaves the tool {shown(function['name'])} free: {why}")
        return _free_call(i, function, self.dsml)

    def refusal(self, text: str) -> str:
        """Why there is no such grammar; empty if there is."""
        if len(text) > MAX_GRAMMAR:
            return "the grammar is too large"
        return self.matcher(text).get_error().partition("\n")[0]

    def note(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self._note(text)

    def matcher(self, text: str) -> llguidance.LLMatcher:
        lark, limits = llguidance.LLMatcher.grammar_from_lark(text), LLParserLimits(max_items_in_row=MAX_CHOICES)
        return llguidance.LLMatcher(self._ll, lark, log_level=0, limits=limits)

    def json_matcher(self, schema: dict, **how: bool) -> llguidance.LLMatcher:
        """Of an answer that is JSON by a schema; its `get_error` says why there is none. `how`: as `json_options`."""
        grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=COMPACT | how)
        return llguidance.LLMatcher(self._ll, grammar, log_level=0)

    def json_grammar(self, schema: dict, tools: Sequence[dict] = (), **how: bool) -> str:
        """Of an answer that is JSON by a schema, or calls of these tools."""
        answer = f"json: %json {json.dumps(schema | {'x-guidance': COMPACT | how})}\n"
        if not tools:
            return f"start: json\n{answer}"
        calls = self.grammar(list(tools)).replace("start", "block", 1)
        return f'start: json | "\\n\\n<" <[{self.dsml}]> block\n{answer}{calls}'

    def json_options(self, schema: dict, at: str, strict: bool) -> tuple[dict[str, bool], str]:
        """With which options of llguidance there is a matcher of a checked schema that a request has at `at`, and what
        these leave out of it, in words. `strict`: that may only be that oneOf allows what fits several. RequestError
        names the place that no grammar can be made of."""
        why = self.json_matcher(schema).get_error()
        if not why:
            return {}, ""
        said = " ".join(why.split())[:200]
        for how in (ANY_OF,) if strict else (ANY_OF, LENIENT):
            left = self.json_matcher(schema, **how).get_error()
            if not left:
                return how, f"{self._place(schema, at, why)} is not kept to: {said}"
        said = " ".join(left.split())[:200]
        raise RequestError(f"{self._place(schema, at, left)}: no grammar can be made of this ({said})")

    def _place(self, root: dict, at: str, why: str) -> str:
        """Where in a schema that is which makes it one without a grammar; the root if that is not known."""
        keys = json.loads(why.partition(":")[2]) if why.startswith("Unimplemented keys:") else ()
        shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
        found = at
        for schema, place in islice(schemas.places(root, at), MOST_PLACES):
            if key := next((key for key in keys if key in schema), None):
                return f"{place}.{key}"
            own = "" if keys else self.json_matcher(shared | schema, **ANY_OF).get_error()
            if own and (own == why or not own.startswith(ALONE)):
                found = place
        return found


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

    @property
    def grammar(self) -> str:
        """The same of the whole answer, for who samples elsewhere."""
        return f"start: <[^{self._guide.dsml}]>* (<[{self._guide.dsml}]> block)?\n" + self._text.replace(
            "start", "block", 1
        )

    def __call__(self, tokens: Sequence[int]) -> np.ndarray | None:
        """(vocab,) bool: what may follow the tokens sampled so far; None if anything may."""
        for token in tokens[self._seen :]:
            self._take(token)
        self._seen = len(tokens)
        if self._matcher is None:
            return None
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, count=self._guide.vocab_size, bitorder="little").view(bool)
        if not self._matcher.is_error() and mask.any():
            return mask
        why = self._matcher.get_error().partition("\n")[0] or "no token would be allowed"
        self._guide.note(f"--constrain gave up within a call: {why}")
        return None

    def _take(self, token: int) -> None:
        if self._matcher is not None:
            self._matcher.consume_token(token)
        elif token == self._guide.dsml and self._before.endswith(b"<"):
            self._matcher = self._guide.matcher(self._text)
        self._before = self._guide.tokenizer.token_bytes(token)


class _Unfit(Exception):
    """There is no grammar for the calls of a tool; says why."""


def _block(calls: Mapping[int, list[str]], dsml: int) -> str:
    """The block after its opening `<｜DSML｜`, in llguidance's Lark, with the rules of each tool by its number.
    `dsml` is the id of that token."""
    bar, names = f"<[{dsml}]>", " | ".join(f"call{i}" for i in calls)
    head = (
        # "\n<" as one lexeme: the lexer takes the longest and never goes back, which "\n" before "<" would need.
        f'start: "tool_calls>\\n<" invoke ("\\n<" invoke){{0,{MAX_CALLS - 1}}} "\\n</" {bar} "tool_calls>"',
        f'invoke: {bar} "invoke name=\\"" ({names}) {bar} "invoke>"',
        # Text goes on over any "</" but the one that the special token makes a closer.
        "text: first upto*",
        "first[lazy]: FIRST",
        "FIRST: /(?s:.)*<\\//",
        "upto[lazy]: UPTO",
        f"UPTO: /(?s:.)*<\\// & ~/{DSML}(?s:.*)/",
    )
    return "\n".join([*head, COMMON, *(line for rules in calls.values() for line in rules)]) + "\n"


def _free_call(i: int, function: dict, dsml: int) -> list[str]:
    """Rules of a tool that may be called with anything."""
    bar = f"<[{dsml}]>"
    tag = f'"\\n<" {bar} /parameter [^>]*>/ text {bar} "parameter>"'
    return [f'call{i}: {quoted(function["name"])} "\\">" ("\\n\\n</" | ({tag})* "\\n</")']


def _call(i: int, function: dict, dsml: int) -> list[str]:
    """Rules of one tool: its parameters in any order, each once at most, the required ones present. _Unfit."""
    has, bar = parameters(function.get("parameters")), f"<[{dsml}]>"
    keys = [*has.required, *(key for key in has.declared if key not in has.required)]
    if len(keys) > MAX_KEYS:
        raise _Unfit(f"it has {len(keys)} parameters, more than {MAX_KEYS}")
    for what, name in (("its name", function["name"]), *(("the name of a parameter", key) for key in keys)):
        if len(name) > MAX_NAME or set(name) & set('"<>｜\n'):
            raise _Unfit(f"{what} does not fit into a tag")
    rules, members = Rules(function.get("parameters") or {}, f"t{i}"), []
    try:
        for bit, key in enumerate(keys):
            members += ((f"{quoted(key)} {value}", bit) for value in _given(rules.forms(has.declared[key]), rules))
        if has.others is not False:
            known = f" & ~({' | '.join(map(quoted, keys))})" if keys else ""
            rules.add(f'OTHER{i}: /[^"<>｜\\n]{{0,{MAX_NAME}}}/{known}')
            members += ((f"OTHER{i} {value}", None) for value in _given(rules.forms(has.others), rules))
        tag, closing = f'"\\n<" {bar} "parameter name=\\""', f'{bar} "parameter>"'
        members = [(f"{tag} {member} {closing}", bit) for member, bit in members]
        given = rules.each_once(f"given{i}", '"\\n</"', members, len(has.required))
        # April's calls without parameters have an empty line.
        empty = "" if has.required else ' | "\\n\\n</"'
        rules.add(f'call{i}: {quoted(function["name"])} "\\">" ({given}{empty})')
        return rules.finish()
    except TooLarge:
        raise _Unfit("its schema is too large") from None


def _given(forms: Forms, rules: Rules) -> Iterator[str]:
    """How a parameter may be given: from behind its name up to the "</" after its value."""
    texts = forms.get("string", ())
    others = {kind: forms[kind] for kind in forms if kind != "string"}
    if texts is None or any(CLOSER in text for text in texts):
        yield '"\\" string=\\"true\\">" text'
    elif texts:
        # With what follows, since one text may be the beginning of another.
        rules.add(f'{(name := rules.name("C"))}: ({" | ".join(map(quoted, texts))}) "</"')
        yield f'"\\" string=\\"true\\">" {name}'
    if others:
        yield f'"\\" string=\\"false\\">" ({rules.written(others)}) "</"'
