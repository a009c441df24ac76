"""One conversation on an engine: messages in, events out. Joins prompt encoding, the session and the parser."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from v4cli import jsonfile, paths
from v4cli.chat import formats, special
from v4cli.chat.constraints import Constraints
from v4cli.chat.dsml import MAX_CALLS
from v4cli.chat.loops import is_loop
from v4cli.chat.messages import with_faults
from v4cli.chat.parser import Event, StreamParser
from v4cli.chat.requests import encode_request
from v4cli.chat.tokenizer import Tokenizer
from v4cli.engine.engine import Engine
from v4cli.engine.gpu import ANYHOW, OnCard
from v4cli.engine.sampler import MOST_TEMPERATURE, Sampling
from v4cli.engine.session import Session
from v4cli.errors import ContextError, ModelError
from v4cli.model.config import V4Config
from v4cli.options import Options
from v4cli.plan.pace import Pace
from v4cli.store import kinds
from v4cli.store.store import is_store

if TYPE_CHECKING:
    from v4cli.remote.engine import RemoteEngine, RemoteSession

MAX_BLOCK = 1 << 18  # characters of one block of tool calls


class Chat:
    """An engine, its tokenizer and one session that keeps its state between turns."""

    def __init__(
        self,
        engine: "Engine | RemoteEngine",
        tokenizer: Tokenizer,
        defaults: dict,
        session: "Session | RemoteSession",
    ):
        self.engine = engine
        self.tokenizer = tokenizer
        self.defaults = defaults
        self.session = session
        self.notes: list[str] = []  # of where it comes from, for the user
        self.note: Callable[[str], None] = lambda text: None  # told what the user should know, in a line
        self.message: dict = {}
        self.finish = ""
        self.prompt: list[int] = []  # ids before the message,
        self.ids: list[int] = []  # those sampled for it, the end of the turn included,
        self.logprobs: list[float] = []  # and the log-probability of each,
        self.likeliest: list[list[tuple[int, float]]] = []  # and the likeliest tokens, if that is asked for
        self.thinks = False  # whether they begin with reasoning
        self._n_top: int | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        backend: str | None = None,
        numerics: str | None = None,
        session: Callable[[Engine], Session] = Engine.session,
        ram: int | None = None,
        learned: Path | None = None,
        on_card: OnCard = ANYHOW,
        drafts: str = "auto",
    ) -> "Chat":
        """Load a model folder: weights, tokenizer.json and generation_config.json; `session` makes the timeline. `ram`,
        `learned`, `on_card` and `drafts` are those of Engine.open.

        ModelError if the model is unusable.
        """
        if not (folder / "tokenizer.json").is_file() and (folder / "config.json").is_file():
            hint = f"v4 verify {folder} tells how to repair it" if is_store(folder) else "put the release's there"
            raise kinds.of_folder(folder) or ModelError(f"{folder}: tokenizer.json is missing", hint)
        engine = Engine.open(folder, backend, numerics, ram, learned, on_card, drafts)
        engine.warm()
        tokenizer, defaults = (read(folder / name, engine.config) for name, read in READERS.items())
        return cls(engine, tokenizer, defaults, session(engine))

    @classmethod
    def elsewhere(cls, engine: "RemoteEngine") -> "Chat":
        """With a model that a server computes; its small files are here. ModelError."""
        tokenizer, defaults = (read(engine.path / name, engine.config) for name, read in READERS.items())
        return cls(engine, tokenizer, defaults, engine.session())

    def twin(self) -> "Chat":
        """Another conversation on the same engine; each may have its own thread."""
        twin = Chat(self.engine, self.tokenizer, self.defaults, self.engine.session())
        twin.note = self.note
        return twin

    @property
    def stats(self):
        return self.session.stats

    def reply(
        self,
        messages: list[dict],
        options: Options,
        tools: list[dict] | None = None,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Event]:
        """Answer the messages; afterwards `.message` is the assistant's, `.finish` why it ended. What must not be run
        has a `fault` that says why: a call, or a message whose block holds no call that can be read.

        Cancelling keeps what was said; finish is then "interrupted". A block of calls without end is cut off; finish
        is then "runaway"; an answer that `options.loops` does not let go round for ever, "loop".
        """
        request = encode_request(self._body(messages, options, tools), self.engine.config.contract)
        context = self.engine.config.max_position_embeddings
        self.prompt = ids = self.tokenizer.encode_prompt(request.prompt, context, cancelled)
        limit = self._limit(len(ids), options.max_tokens or request.default_max_tokens)
        sampling = self._sampling(options, request)
        user = self.tokenizer.special_id(special.USER)
        turns = [i for i, token in enumerate(ids) if token == user]
        self.session.title = self.session.title or _title(messages)
        allowed, self._n_top = self._allowed(options, request.thinking, tools), options.top_logprobs
        parser = StreamParser(request.thinking, request.starts_in_tool_calls, options.stop, request.parse_tool_calls)
        self.message, self.finish = {"role": "assistant", "content": ""}, "interrupted"
        self.ids, self.logprobs, self.likeliest, self.thinks = [], [], [], request.thinking
        try:
            if not cancelled() and self.session.sync(ids, progress, cancelled, turns):
                stops = options.loops == "stop"
                yield from self._sample(parser, sampling, limit, cancelled, allowed, stops)
            events = parser.finish(self.finish)
            self.finish = events[-1].finish
        finally:
            stats = self.session.stats
            self.pace.learn(stats.cached_tokens, stats.cached_tokens + stats.prefill_tokens, stats.prefill_s)
            said = {} if options.stop else sampled(self.tokenizer, self.ids, parser, request.thinking)
            self.message = _message(parser) | said
        yield from events

    def _sample(
        self, parser: StreamParser, sampling: Sampling, limit: int, cancelled, allowed, stops_loops: bool
    ) -> Iterator[Event]:
        """Sample until the turn ends, or has to; `.finish` says why."""
        decoder, eos = self.tokenizer.stream(), self.tokenizer.eos_id
        for step in self.session.generate(sampling, limit, (eos,), cancelled, allowed, self._n_top or 0):
            self.ids.append(step.token)
            self.logprobs.append(step.logprob)
            if self._n_top:
                self.likeliest.append(list(step.likeliest))
            if step.token != eos:
                yield from parser.push(decoder.push(step.token))
            runaway = parser.block_length > MAX_BLOCK or len(parser.faults) > MAX_CALLS
            loop = stops_loops and is_loop(self.ids)
            ended = "stop" if parser.stopped else step.finish
            self.finish = ended or ("runaway" if runaway else "loop" if loop else "interrupted")
            if self.finish != "interrupted":
                yield from parser.push(decoder.flush())
                return

    @cached_property
    def constraints(self) -> Constraints:
        return Constraints(self.tokenizer, self.engine.config.vocab_size, lambda text: self.note(text))

    @cached_property
    def pace(self) -> Pace:
        """How fast prompts are computed where this model is."""
        return Pace(paths.figures_file(), f"{self.engine.path} {self.engine.where}", self.engine.config)

    def _allowed(self, options: Options, thinking: bool, tools: list[dict] | None):
        """What keeps to a format, or calls to their schemas, token by token; None: nothing is asked to."""
        if options.format:
            return self.constraints.json(options.format, thinking, tools or ())
        return self.constraints.guide.constraint(tools) if options.constrain and tools else None

    def _body(self, messages: list[dict], options: Options, tools: list[dict] | None) -> dict:
        body: dict = {"messages": messages, "tools": tools or []}
        if options.format:
            body |= formats.asked_for(messages, options.format)
        body["thinking"] = {"type": "enabled" if options.thinking else "disabled"}
        if options.effort:
            body["reasoning_effort"] = options.effort
        return body

    def context(self, messages: list[dict], options: Options, tools: list[dict] | None = None) -> list[int]:
        """Ids of all that was said, as the next prompt begins with them. RequestError."""
        request = encode_request(self._body(messages, options, tools), self.engine.config.contract)
        return self.tokenizer.encode_prompt(request.prompt)

    def in_force(self, options: Options, tools: list[dict] | None = None) -> Options:
        """The options with what the release says where they do not."""
        body = self._body([{"role": "user", "content": "?"}], options, tools)
        request = encode_request(body, self.engine.config.contract)
        sampling = self._sampling(options, request)
        most = options.max_tokens or request.default_max_tokens
        return replace(options, temperature=sampling.temperature, top_p=sampling.top_p, max_tokens=most)

    def _limit(self, n_prompt: int, max_tokens: int) -> int:
        room = self.engine.config.max_position_embeddings - n_prompt
        if room < 1:
            raise ContextError(f"the prompt has {n_prompt:,} tokens and fills the model's whole context")
        return min(max_tokens, room)

    def _sampling(self, options: Options, request) -> Sampling:
        temperature, top_p = options.temperature, options.top_p
        if temperature is None:
            temperature = self.defaults.get("temperature", request.temperature)
        return Sampling(
            temperature, request.top_p if top_p is None else top_p, options.top_k, options.min_p, options.seed
        )


def sampled(tokenizer: Tokenizer, ids: list[int], parser: StreamParser, thinking: bool) -> dict:
    """The tokens of the message, for the next prompt to be what the cache holds. Of a token that goes on after the
    end of the tool block, its part up to there."""
    ids = [token for token in ids if token != tokenizer.eos_id]
    text = said = tokenizer.complete(ids)
    length = len(text) - parser.unread
    while len(said) > length:
        ids.pop()
        said = tokenizer.complete(ids)
    ids += tokenizer.encode(text[len(said) : length])
    return {"sampled": {"ids": ids, "text": text[:length], "thinking": thinking}} if ids else {}


def _message(parser: StreamParser) -> dict:
    """The assistant message so far, as the next prompt needs it."""
    parsed = parser.message()
    message = {"role": "assistant", "content": parsed.get("content", "")}
    if "reasoning_content" in parsed:
        message["reasoning_content"] = parsed["reasoning_content"]
    if "tool_calls" in parsed:
        message["tool_calls"] = [call | {"id": f"call_{call['index']}"} for call in parsed["tool_calls"]]
    if parser.tool_block:
        message["tool_block"] = parser.tool_block
    return with_faults(message, parser.faults)


def _title(messages: list[dict]) -> str:
    """The first words of the user."""
    text = next((m["content"] for m in messages if m.get("role") == "user" and isinstance(m.get("content"), str)), "")
    return " ".join(text[:200].split())[:60]


def _tokenizer(path: Path, config: V4Config) -> Tokenizer:
    """tokenizer.json, of this model's vocabulary."""
    tokenizer = Tokenizer.from_file(path)
    tokenizer.check(config, path)
    return tokenizer


def _generation_defaults(path: Path, config: V4Config) -> dict:
    """Temperature from generation_config.json; do_sample false means greedy."""
    if not os.path.lexists(path):
        return {}
    data = jsonfile.read(path, limit=jsonfile.SMALL)
    if not isinstance(data, dict):
        raise ModelError(f"{path}: not a JSON object")
    if data.get("do_sample") is False:
        return {"temperature": 0.0}
    value = data.get("temperature", 1.0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MOST_TEMPERATURE:
        raise ModelError(f"{path}: temperature is {jsonfile.shown(value)}, not a number from 0 to {MOST_TEMPERATURE}")
    return {"temperature": float(value)}


# What opens each small file of a model besides config.json. ModelError for one that cannot be used.
READERS: dict[str, Callable[[Path, V4Config], object]] = {
    "tokenizer.json": _tokenizer,
    "generation_config.json": _generation_defaults,
}
