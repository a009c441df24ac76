"""Messages to the prompt a V4 checkpoint was trained on (spec 5.2-5.4). The April contract is the encoder itself;
the 0731/0813 contract (requests.py) differs in effort texts and in what an API request is turned into first."""

from v4cli.chat import dsml
from v4cli.chat.messages import check_messages, content_text, merge_turns
from v4cli.chat.special import (
    ASSISTANT,
    BOS,
    END_THINK,
    EOS,
    REMINDER,
    TASKS,
    THINK,
    USER,
    Prompt,
    PromptBuilder,
)
from v4cli.errors import RequestError

EFFORT_A = (
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root "
    "cause, rigorously stress-testing your logic against all potential paths, edge cases, and adversarial "
    "scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate step, considered "
    "alternative, and rejected hypothesis to ensure absolutely no assumption is left unchecked.\n\n"
)
EFFORT_B = (
    "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n"
    "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: exhaustively "
    "decompose the problem into its most fundamental components, trace every causal chain to its root, and "
    "resolve the underlying cause rather than any surface symptom.\n"
    "Do not stop reasoning until you have independently verified the solution from multiple angles and are "
    "certain that no assumption remains unchecked and no error remains undiscovered.\n\n"
)
EFFORTS = {
    "april": {None: "", "low": "", "high": "", "max": EFFORT_A},
    "0731": {None: "", "low": "", "high": EFFORT_A, "xhigh": EFFORT_A, "max": EFFORT_B},
}
RESPONSE_FORMAT = "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"


def encode_april(
    messages: list[dict],
    thinking_mode: str = "chat",
    drop_thinking: bool = True,
    reasoning_effort: str | None = None,
    context: list[dict] | None = None,
    add_default_bos_token: bool = True,
) -> Prompt:
    """Render messages with the April encoder. `context` are messages already in the prompt: not rendered again."""
    efforts = EFFORTS["april"]
    if thinking_mode not in ("chat", "thinking"):
        raise RequestError(f"thinking_mode must be chat or thinking, not {str(thinking_mode)[:40]!r}")
    if not isinstance(reasoning_effort, str | None) or reasoning_effort not in efforts:
        raise RequestError(f"reasoning_effort must be one of {', '.join(filter(None, efforts))}")
    if not isinstance(drop_thinking, bool) or not isinstance(add_default_bos_token, bool):
        raise RequestError("drop_thinking and add_default_bos_token must be true or false")
    thinking = thinking_mode == "thinking"
    prefix = efforts[reasoning_effort] if thinking else ""
    return render(messages, thinking, drop_thinking, prefix, context, add_default_bos_token)


def render(
    messages: list[dict],
    thinking: bool,
    drop_thinking: bool,
    prefix: str,
    context: list[dict] | None = None,
    bos: bool = True,
    empty_line: bool = True,
) -> Prompt:
    """The encoder: BOS, effort prefix, then each message after `context`."""
    context = [] if context is None else context
    check_messages(messages)
    check_messages(context, "context")
    before = merge_turns(context)
    full = before + merge_turns(messages)
    dropping = drop_thinking and not any(message.get("tools") for message in full)
    n_before = len(before)
    if thinking and dropping:
        full, n_before = _without_old_thinking(full, n_before)
    out = PromptBuilder()
    if bos and not before:
        out.special(BOS)
    renderer = _Renderer(out, full, thinking, dropping, empty_line)
    for i in range(n_before, len(full)):
        if i == 0:
            out.text(prefix)
        renderer.message(i)
    return out.build()


def _last_user(messages: list[dict]) -> int:
    return max((i for i, m in enumerate(messages) if m["role"] in ("user", "developer")), default=-1)


def _without_old_thinking(messages: list[dict], n_before: int) -> tuple[list[dict], int]:
    """Before the last user turn: no reasoning, no developer messages."""
    last = _last_user(messages)
    kept, n_kept_before = [], 0
    for i, message in enumerate(messages):
        if i < last and message["role"] == "developer":
            continue
        if i < last and message["role"] == "assistant":
            message = {k: v for k, v in message.items() if k != "reasoning_content"}
        kept.append(message)
        n_kept_before += i < n_before
    return kept, n_kept_before


class _Renderer:
    """Writes single messages of a conversation that is already merged and pruned."""

    def __init__(self, out: PromptBuilder, messages: list[dict], thinking: bool, dropping: bool, empty_line: bool):
        self.out = out
        self.messages = messages
        self.thinking = thinking
        self.dropping = dropping
        self.empty_line = empty_line
        self.last_user = _last_user(messages)

    def message(self, i: int) -> None:
        message = self.messages[i]
        role = message["role"]
        if role == "assistant":
            self._assistant(i, message)
        elif role == "latest_reminder":
            self.out.special(REMINDER)
            self.out.text(content_text(message.get("content")))
        else:
            self._input(message)
        self._after(i, message)

    def _input(self, message: dict) -> None:
        """System, developer and user messages."""
        if message["role"] != "system":
            self.out.special(USER)
        if "blocks" in message:
            self._blocks(message["blocks"])
        else:
            self.out.text(content_text(message.get("content")))
        if message.get("tools"):
            self.out.text("\n\n")
            dsml.write_tools(self.out, message["tools"])
        if message.get("response_format"):
            self.out.text("\n\n" + RESPONSE_FORMAT + dsml.to_json(message["response_format"]))

    def _blocks(self, blocks: list[tuple]) -> None:
        for j, (call_id, text) in enumerate(blocks):
            self.out.text("\n\n" if j else "")
            self.out.text(text if call_id is None else f"<tool_result>{text}</tool_result>")

    def _assistant(self, i: int, message: dict) -> None:
        out = self.out
        tasked = i > 0 and self.messages[i - 1].get("task")
        thought = self.thinking and not tasked and (not self.dropping or i > self.last_user)
        if message.get("sampled") and message["sampled"]["thinking"] == thought:
            self._sampled(message)
            return
        if thought:
            out.text(message.get("reasoning_content") or "")
            out.special(END_THINK)
        out.text(content_text(message.get("content")))
        if message.get("tool_block"):
            out.markup(message["tool_block"])  # exactly what the model sampled
        elif message.get("tool_calls"):
            dsml.write_calls(out, message["tool_calls"], self.empty_line)
        if not message.get("wo_eos"):
            out.special(EOS)

    def _sampled(self, message: dict) -> None:
        """The assistant's turn exactly as it is in the cache; thinking that was cut off is closed."""
        sampled = message["sampled"]
        self.out.sampled(sampled["ids"], sampled["text"])
        if sampled["thinking"] and END_THINK not in sampled["text"] and not message.get("tool_block"):
            self.out.special(END_THINK)
        if not message.get("wo_eos"):
            self.out.special(EOS)

    def _after(self, i: int, message: dict) -> None:
        """Task token, or the header that hands the turn to the assistant."""
        following = self.messages[i + 1]["role"] if i + 1 < len(self.messages) else None
        if following not in (None, "assistant", "latest_reminder"):
            return
        task, role = message.get("task"), message["role"]
        if task and task != "action":
            self.out.special(TASKS[task])
        elif role in ("user", "developer"):
            self.out.special(ASSISTANT)
            opens = self.thinking and (not self.dropping or i >= self.last_user)
            self.out.special(THINK if opens else END_THINK)
            if task:
                self.out.special(TASKS[task])
