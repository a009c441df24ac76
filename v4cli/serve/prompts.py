"""From what a client asks for to token ids. What the encoder refuses is made into what it takes: a client that knows
other servers must not fail here."""

from collections.abc import Callable
from dataclasses import dataclass

from v4cli.chat import dsml, special
from v4cli.chat.formats import ANY_OBJECT
from v4cli.chat.messages import content_text
from v4cli.chat.requests import JSON_OBJECT, encode_request
from v4cli.chat.special import PromptBuilder
from v4cli.chat.tokenizer import Tokenizer
from v4cli.engine.sampler import Sampling
from v4cli.errors import ContextError, RequestError
from v4cli.model.config import V4Config
from v4cli.serve.asked import Asked
from v4cli.serve.memory import Memory

BILLING = "x-anthropic-billing-header:"  # begins a line that is another in every request and tells the model nothing


@dataclass(frozen=True)
class Encoded:
    """A prompt, and how to go on from it."""

    asked: Asked
    ids: list[int]
    messages: list[dict]  # as rendered
    thinking: bool  # the answer begins in <think>
    forced: str  # the end of the prompt that is part of the answer: a tool block that has been opened
    forced_ids: list[int]
    prefixed: bool  # the answer goes on with what the client began
    limit: int  # tokens of the answer
    sampling: Sampling
    anchors: list[int]  # where other prompts may go on differently


class Prompts:
    """Encodes for one model."""

    def __init__(self, config: V4Config, tokenizer: Tokenizer, defaults: dict, memory: Memory):
        """`defaults`: of sampling, those of generation_config.json."""
        self.tokenizer, self.defaults, self.memory = tokenizer, defaults, memory
        self.contract = config.contract
        self.context, self.vocab_size = config.max_position_embeddings, config.vocab_size

    def encode(self, asked: Asked, cancelled: Callable[[], bool] = lambda: False) -> Encoded:
        """RequestError; ContextError where no room is left for an answer."""
        if asked.prompt is not None:
            return self._raw(asked, cancelled)
        messages, prefixed = _conversation(asked)
        thinking = asked.thinking and not prefixed and not _forces(asked)
        messages = self.memory.restored(messages)
        kept = thinking and any(message.get("sampled", {}).get("thinking") for message in messages)
        body: dict = {"messages": messages, "tools": list(_tools(asked))}
        body["thinking"] = {"type": "enabled" if thinking else "disabled"}
        body |= {"reasoning_effort": asked.effort} if thinking and asked.effort else {}
        if asked.format and asked.format.schema != ANY_OBJECT:
            body["response_format"] = {"type": "json_schema", "json_schema": {"schema": asked.format.schema}}
        request = encode_request(body, self.contract, kept)
        forced = _opening(asked)
        forced_ids = self._ids(_markup(forced), cancelled) if forced else []
        ids = self._ids(request.prompt, cancelled) + forced_ids
        user = self.tokenizer.special_id(special.USER)
        users = [i for i, token in enumerate(ids) if token == user]
        defaults = (self.defaults.get("temperature", request.temperature), request.top_p, request.default_max_tokens)
        return self._encoded(
            asked, ids, defaults, messages=messages, thinking=thinking, forced=forced, forced_ids=forced_ids,
            prefixed=prefixed, anchors=users,
        )  # fmt: skip

    def _raw(self, asked: Asked, cancelled: Callable[[], bool]) -> Encoded:
        """A prompt that is complete: token ids, or text after the token that begins one."""
        ids = list(asked.prompt or ())
        if isinstance(asked.prompt, str):
            text = PromptBuilder()
            text.special(special.BOS)
            text.text(asked.prompt)
            ids = self._ids(text.build(), cancelled)
        bad = next((token for token in ids if not 0 <= token < self.vocab_size), None)
        if bad is not None:
            raise RequestError(f"prompt: token id {bad} is outside the vocabulary of {self.vocab_size}")
        defaults = (self.defaults.get("temperature", 1.0), 1.0, 16)
        return self._encoded(
            asked, ids, defaults, messages=[], thinking=False, forced="", forced_ids=[], prefixed=True, anchors=[]
        )

    def _encoded(self, asked: Asked, ids: list[int], defaults: tuple[float, float, int], **about) -> Encoded:
        room = self.context - len(ids)
        if room < 1:
            raise ContextError(f"the prompt has {len(ids):,} tokens and fills the model's whole context")
        temperature, top_p, max_tokens = defaults
        sampling = Sampling(
            temperature if asked.temperature is None else asked.temperature,
            top_p if asked.top_p is None else asked.top_p,
            asked.top_k, asked.min_p, asked.seed,
        )  # fmt: skip
        return Encoded(asked, ids, limit=min(asked.max_tokens or max_tokens, room), sampling=sampling, **about)

    def _ids(self, prompt, cancelled: Callable[[], bool]) -> list[int]:
        return self.tokenizer.encode_prompt(prompt, self.context, cancelled)


def _conversation(asked: Asked) -> tuple[list[dict], bool]:
    """Messages as the encoder takes them, and whether the last is the beginning of the answer. System messages after
    the beginning stay where they are, as notes of the user: to hoist one would change the start of every prompt."""
    first = next((i for i, m in enumerate(asked.messages) if m["role"] not in ("system", "developer")), None)
    first = len(asked.messages) if first is None else first
    system = "\n\n".join(filter(None, (_unbilled(content_text(m.get("content"))) for m in asked.messages[:first])))
    if asked.format and asked.format.schema == ANY_OBJECT:
        system += JSON_OBJECT
    messages = [{"role": "system", "content": system}] if system else []
    for message in asked.messages[first:]:
        role = "user" if message["role"] in ("system", "developer") else message["role"]
        messages.append(message | {"role": role})
    while messages and messages[-1]["role"] == "assistant" and not _says(messages[-1]):
        messages.pop()
    if not messages:
        raise RequestError("there is no message to answer")
    last = messages[-1]
    if last["role"] == "assistant" and not last.get("tool_calls") and not _forces(asked):
        messages[-1] = {"role": "assistant", "content": last.get("content") or "", "prefix": True}
        return messages, True
    if last["role"] in ("assistant", "system"):
        messages.append({"role": "user", "content": ""})
    return messages, False


def _says(message: dict) -> bool:
    return bool(message.get("content") or message.get("tool_calls"))


def _unbilled(text: str) -> str:
    return "\n".join(line for line in text.split("\n") if not line.startswith(BILLING)) if BILLING in text else text


def _forces(asked: Asked) -> bool:
    return bool(asked.tools) and (asked.choice == "required" or asked.named is not None)


def _tools(asked: Asked) -> tuple[dict, ...]:
    """Those that the model is shown: all, or the one that it must call, as it was trained."""
    if asked.named is None:
        return asked.tools
    chosen = tuple(tool for tool in asked.tools if tool["function"]["name"] == asked.named)
    if not chosen:
        raise RequestError(f"tool_choice: there is no tool {asked.named[:60]!r} in tools")
    return chosen


def _opening(asked: Asked) -> str:
    """The beginning of a tool block that the answer has to go on with."""
    if not _forces(asked):
        return ""
    name = f'<{special.DSML}invoke name="{asked.named}">\n' if asked.named is not None else ""
    return f"\n\n{dsml.CALLS_OPEN}\n{name}"


def _markup(text: str):
    out = PromptBuilder()
    out.markup(text)
    return out.build()
