"""What `v4 run` prints: the answer as text, as one JSON object, or as a line of JSON for each event."""

import json
import sys

from v4cli import terminal
from v4cli.agent.loop import CallEnd, CallStart, is_empty
from v4cli.chat import special
from v4cli.chat.messages import calls_in, last_said, readable_arguments, without_ids
from v4cli.chat.parser import End, Text, Thinking, ToolCallEnd
from v4cli.clean import beginning, harmless, visible
from v4cli.cli import output
from v4cli.errors import V4Error
from v4cli.options import RunOptions
from v4cli.streams import styled

SHOWN_LINES, SHOWN_WIDTH = 4, 200  # of a tool's result


def result(told: RunOptions, messages: list[dict], finish: str, stats, chat, id: str, is_whole: bool) -> dict:
    """The object of --json; the answer is the last message of the model. Keys are only ever added. `id` of the
    conversation, if it is kept."""
    last = last_said(messages)
    parsed = {"parsed": json.loads(last["content"])} if told.answer.format and is_whole and last["content"] else {}
    return {
        "model": told.model,
        "text": last["content"],
        **parsed,
        "reasoning_content": last.get("reasoning_content", ""),
        "tool_calls": [{k: v for k, v in c.items() if k != "index"} for c in last.get("tool_calls", [])],
        "finish_reason": finish,
        **_fault(last.get("fault", "")),
        "usage": {
            "prompt_tokens": stats.prompt_tokens,
            "cached_tokens": stats.cached_tokens,
            "completion_tokens": stats.completion_tokens,
        },
        **({} if told.logprobs is None else {"logprobs": logprobs(chat)}),
        **({"conversation": id} if id else {}),
        "messages": list(map(without_ids, messages)),
        "stats": stats.to_dict(),
    }


def logprobs(chat) -> list[dict]:
    """Of each token of the answer, reasoning left out, its log-probability at temperature 1 and those of the likeliest
    ones, as Chat Completions tells them."""
    end, specials = chat.tokenizer.special_id(special.END_THINK), chat.tokenizer.special_ids
    begin = chat.ids.index(end) + 1 if end in chat.ids else 0
    begin = len(chat.ids) if not begin and chat.thinks else begin
    likeliest = chat.likeliest or [[]] * len(chat.ids)
    return [
        _likely(chat, token, logprob) | {"top_logprobs": [_likely(chat, *other) for other in others]}
        for token, logprob, others in list(zip(chat.ids, chat.logprobs, likeliest))[begin:]
        if token not in specials
    ]


def _likely(chat, token: int, logprob: float) -> dict:
    text = chat.tokenizer.token_bytes(token) or chat.tokenizer.decode([token]).encode()
    return {"token": text.decode("utf-8", "replace"), "bytes": list(text), "logprob": min(logprob, 0.0)}


def _fault(reason: str) -> dict:
    """The key that only what must not be run has."""
    return {"fault": reason} if reason else {}


def shortfall(messages: list[dict], finish: str, limit: str) -> str:
    """What is missing in what was said, on one line; empty if it is a whole answer, and all calls before it are
    whole. An interruption is told by whoever ends the command. `limit`: which one it is that "length" means."""
    last = last_said(messages)
    why = {
        "length": f"cut off at {limit}",
        "runaway": "stopped, the block of calls had no end",
        "loop": "stopped, it said the same over and over (--loops keep lets it go on)",
        "rounds": "stopped at the limit of turns",
    }.get(finish, finish)
    parts = [why] if why not in ("stop", "tool_calls", "interrupted") else []
    if is_empty(last) and finish != "interrupted":
        thinking = parts and last.get("reasoning_content")
        parts.append("it was still thinking, there is no answer" if thinking else "the model gave no answer")
    for said in messages:
        for name, _, fault in calls_in(said):
            if fault:
                parts.append(f"a call is not whole ({name}): {fault}")
    return " ".join(visible("; ".join(dict.fromkeys(parts))).split())


def stats_line(stats) -> str:
    """One line for people."""
    values = stats.to_dict()
    line = (
        f"prompt {stats.prompt_tokens} tokens ({stats.cached_tokens} cached) "
        f"{values['prefill_tokens_per_s']:.0f} tok/s, answer {stats.completion_tokens} tokens "
        f"{values['decode_tokens_per_s']:.1f} tok/s, load {stats.load_s:.2f} s, "
        f"KV {output.size(stats.kv_bytes)}, peak memory {output.size(values['peak_rss_bytes'])}"
    )
    if stats.drafts and stats.drafts.verified:
        line += _drafts(stats.drafts)
    if stats.planned_bytes:
        line += f" of {output.size(stats.planned_bytes)} planned"
    for what, items in (("memory", stats.memory), ("VRAM", stats.vram)):
        if items:
            held = (f"{name} {output.size(n)} of {output.size(planned)}" for name, (planned, n) in items.items())
            line += f"\n{what} held of what was planned: {', '.join(held)}"
    return line + _experts_lines(stats) + _reached_line(stats.reached)


def _drafts(drafts) -> str:
    """What guesses did."""
    a_step, of_one = drafts.accepted / drafts.steps, drafts.row_cost
    return f", drafts +{a_step:.2f} tokens a step ({drafts.accepted} of {drafts.verified} right), " + (
        f"a row {of_one:.0%} of a step, {drafts.gain:.2f}x"
    )


def _experts_lines(stats) -> str:
    """Of experts that are not all in one place: hits in VRAM and RAM, bytes from the SSD, time waiting."""
    parts = []
    for name, read, n_tokens, seconds in (
        ("prefill", stats.prefill_experts, stats.prefill_tokens, stats.prefill_s),
        ("decode", stats.decode_experts, stats.completion_tokens - 1, stats.decode_s),
    ):
        if read and n_tokens > 0 and seconds:
            parts.append(f"\n{name}: {_served(read)}, ")
            if read["bytes_read"] or not read["on_card"]:
                parts.append(
                    f"{output.size(read['bytes_read'] / n_tokens)} per token from the SSD, "
                    f"{read['bytes_wasted'] / max(1, read['bytes_read']):.0%} of it in vain, "
                    f"busy {read['busy_s'] / seconds:.0%} of the time, "
                )
            parts.append(f"waited for {read['wait_s'] / seconds:.0%} of the time")
    return "".join(parts)


def _reached_line(reached: dict | None) -> str:
    """How fast decoding read, where a GPU computes."""
    if not reached:
        return ""
    of = f", {reached['of_vram']:.0%} of what v4 doctor measured" if "of_vram" in reached else ""
    ram = f"; experts in RAM at {output.rate(reached['ram'])}" if reached["ram"] else ""
    return f"\ndecode: VRAM read at {output.rate(reached['vram'])}{of}{ram}"


def _served(counts: dict) -> str:
    """Where experts were that were asked for."""
    whole, there = counts["hit_rate"], counts["card_hit_rate"]
    return (
        f"{there:.0%} of experts in VRAM, {whole - there:.0%} in RAM" if there else f"{whole:.0%} of experts in memory"
    )


class TextWriter:
    """Answer to stdout as it comes; thinking, tool calls and the beginnings of their results to stderr."""

    def __init__(self, stream: bool, show_thinking: bool):
        self.stream, self.show_thinking = stream, show_thinking
        self.thinking = self.line_open = False  # whether the last thing on stderr, on stdout, has its newline yet

    def event(self, event) -> None:
        if isinstance(event, Thinking) and self.show_thinking and self.stream:
            if not self.thinking and not styled(sys.stderr):
                output.note("(thinking) ", end="")
            self.thinking = True
            output.note(event.text, end="", dim=True)
        elif self.thinking and not isinstance(event, Thinking):
            self.thinking = False
            output.note("")
            if isinstance(event, Text) and terminal.out.is_terminal and not styled(sys.stderr):
                output.note("(answer) ", end="")
        if isinstance(event, Text) and self.stream and event.text:
            self.line_open = True
            output.answer(event.text)
        elif isinstance(event, ToolCallEnd):
            self._call(event.name, event.arguments, event.fault)
        elif isinstance(event, CallStart):
            given = event.call.given
            self._call(event.call.name, given if isinstance(given, str) else json.dumps(given, ensure_ascii=False))
        elif isinstance(event, CallEnd):
            output.note(folded(event.result), dim=True)

    def _call(self, name: str, arguments: str, fault: str = "") -> None:
        if self.line_open:
            self.line_open = False
            output.answer("\n")
        output.note(visible(f"[{name} {arguments}]" + (f" (not whole: {fault})" if fault else "")), dim=True)

    def error(self, error: V4Error) -> None:
        pass

    def end(self, result: dict) -> None:
        if not self.stream:
            if self.show_thinking and result["reasoning_content"]:
                output.note(result["reasoning_content"], dim=True)
            output.answer(result["text"])
            self.line_open = bool(result["text"])
        if self.line_open:
            output.answer("\n")


class CheckedWriter(TextWriter):
    """An answer that is to be JSON: printed when it is known to be what was asked for, else not at all; thinking comes
    as it comes."""

    def __init__(self, show_thinking: bool):
        super().__init__(True, show_thinking)

    def event(self, event) -> None:
        super().event(Text("") if isinstance(event, Text) else event)

    def end(self, result: dict) -> None:
        if "parsed" in result:
            output.answer(result["text"] + "\n")


def folded(text: str) -> str:
    """The beginning of a result, indented, and how much more there is."""
    lines = beginning(harmless(text), SHOWN_LINES)
    return "\n".join("  " + (line if len(line) <= SHOWN_WIDTH else line[:SHOWN_WIDTH] + "…") for line in lines)


class SilentWriter:
    """Nothing until the end, then one JSON object."""

    def event(self, event) -> None:
        pass

    def error(self, error: V4Error) -> None:
        pass

    def end(self, result: dict) -> None:
        output.json_page(result)


class StreamWriter:
    """One JSON event per line; docs/terminal.md lists them."""

    def __init__(self, model: str):
        output.json_line({"type": "init", "model": model})

    def event(self, event) -> None:
        if isinstance(event, Thinking):
            output.json_line({"type": "thinking", "text": event.text})
        elif isinstance(event, Text):
            output.json_line({"type": "message", "text": event.text})
        elif isinstance(event, ToolCallEnd):
            about = {"id": f"call_{event.index}", "index": event.index, "name": event.name}
            about |= {"arguments": readable_arguments(event.arguments), **_fault(event.fault)}
            output.json_line({"type": "tool_use", **about})
        elif isinstance(event, CallStart):
            call = event.call
            about = {"id": call.id, "name": call.name, "arguments": call.given, **_fault(call.fault)}
            output.json_line({"type": "tool_use", **about})
        elif isinstance(event, CallEnd):
            about = {"id": event.call.id, "name": event.call.name, "ok": event.ok, "seconds": round(event.seconds, 3)}
            output.json_line({"type": "tool_result", **about, "text": event.result})
        elif isinstance(event, End):
            output.json_line({"type": "end", "finish_reason": event.finish, **_fault(event.fault)})

    def error(self, error: V4Error) -> None:
        output.json_line({"type": "error", "message": str(error), "hint": error.hint})

    def end(self, result: dict) -> None:
        output.json_line({"type": "result", **result})
