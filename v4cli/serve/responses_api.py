"""Responses: the events of /v1/responses, and the response that they make up."""

from typing import Any

from v4cli.serve.asked import Asked, ToolName, custom_input
from v4cli.serve.chat_api import logprob_entry
from v4cli.serve.dialect import Machine, new_id, sse
from v4cli.serve.events import Call, End, Event, Failed, Finish, Logprob, Text, Thinking, Usage
from v4cli.serve.responses_input import sealed

ECHOED = ("instructions", "metadata", "temperature", "top_p", "max_output_tokens", "reasoning", "text", "user")


class ResponsesMachine(Machine):
    """Items one after the other; each is in `output` from its beginning, as far as it is known."""

    def __init__(self, asked: Asked, model: str, n_prompt: int, body: dict):
        """`body` of the request, some of which is told again."""
        super().__init__(asked, model, n_prompt)
        self.id, self.output, self.status = new_id("resp_"), [], "in_progress"
        self._about = {name: body.get(name) for name in ECHOED} | {
            "tools": body.get("tools") or [],
            "tool_choice": body.get("tool_choice") or "auto",
            "parallel_tool_calls": not asked.one_call,
        }
        self._about["metadata"] = self._about["metadata"] or {}
        include, reasoning = body.get("include"), body.get("reasoning")
        self._seals = isinstance(include, list) and "reasoning.encrypted_content" in include
        self._sums_up = isinstance(reasoning, dict) and bool(reasoning.get("summary"))
        self._number = -1
        self._open = False
        self._failed: Failed | None = None
        self._cut_off = False
        self._likely: list[dict] = []  # of tokens whose text has not come yet

    # -- the stream -----------------------------------------------------------------------------------------------

    def begin(self) -> list[str]:
        return [self._event(f"response.{kind}", response=self._response()) for kind in ("created", "in_progress")]

    def beat(self) -> list[str]:
        return [self._event("response.in_progress", response=self._response())]

    def take(self, choice: int, event: Event) -> list[str]:
        match event:
            case Thinking(text):
                return self._in("reasoning") + self._grow(text, "reasoning_text") + self._grow_summary(text)
            case Text(text):
                return self._in("message") + self._grow(text, "output_text")
            case Logprob():
                self._likely.append(logprob_entry(event))
                return self._grow("", "output_text") if self._open and self.output[-1]["type"] == "message" else []
            case Call():
                self._likely.clear()
                return self._close() + self._call(event)
            case Finish():
                self._cut_off = event.reason == "length"
                return self._close()
        return []

    def end(self, end: End) -> list[str]:
        out = self._close()
        if isinstance(end, Failed):
            self.status, self._failed = "failed", end
        else:
            self.usage, self.status = end, "incomplete" if self._cut_off else "completed"
        return [*out, self._event(f"response.{self.status}", response=self._response())]

    def final(self) -> dict:
        return self._response()

    def _response(self) -> dict:
        error = self._failed
        return self._about | {
            "id": self.id, "object": "response", "created_at": self.created, "status": self.status,
            "model": self.model, "output": self.output, "store": False, "previous_response_id": None,
            "background": False, "truncation": "disabled",
            "error": {"code": error.code or "server_error", "message": error.message} if error else None,
            "incomplete_details": {"reason": "max_output_tokens"} if self.status == "incomplete" else None,
            "usage": None if self.status in ("in_progress", "failed") else usage_of(self.usage),
        }  # fmt: skip

    def _event(self, kind: str, **about: Any) -> str:
        self._number += 1
        return sse({"type": kind, "sequence_number": self._number, **about}, kind)

    # -- items of text --------------------------------------------------------------------------------------------

    @property
    def _at(self) -> dict:
        return {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1}

    def _in(self, kind: str) -> list[str]:
        """Be in an item of this kind."""
        if self._open and self.output[-1]["type"] == kind:
            return []
        out = self._close()
        if kind == "message":
            item = {"id": new_id("msg_"), "type": kind, "role": "assistant", "status": "in_progress", "content": []}
            part: dict = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        else:
            item = {"id": new_id("rs_"), "type": kind, "summary": [], "content": [], "status": "in_progress"}
            part = {"type": "reasoning_text", "text": ""}
        out += self._added(item)
        item["content"] = [part]
        out.append(self._event("response.content_part.added", **self._at, content_index=0, part=part))
        if kind == "reasoning" and self._sums_up:
            item["summary"] = [{"type": "summary_text", "text": ""}]
            kind_of_event = "response.reasoning_summary_part.added"
            out.append(self._event(kind_of_event, **self._at, summary_index=0, part=item["summary"][0]))
        self._open = True
        return out

    def _added(self, item: dict) -> list[str]:
        self.output.append(item)
        return [self._event("response.output_item.added", output_index=len(self.output) - 1, item=item)]

    def _grow(self, text: str, kind: str) -> list[str]:
        part, more = self.output[-1]["content"][0], {}
        part["text"] += text
        if kind == "output_text":
            more["logprobs"], self._likely = self._likely, []
            part["logprobs"] += more["logprobs"]
        return [self._event(f"response.{kind}.delta", **self._at, content_index=0, delta=text, **more)]

    def _grow_summary(self, text: str) -> list[str]:
        if not self.output[-1]["summary"]:
            return []
        self.output[-1]["summary"][0]["text"] += text
        return [self._event("response.reasoning_summary_text.delta", **self._at, summary_index=0, delta=text)]

    def _close(self) -> list[str]:
        if not self._open:
            return []
        self._open, item = False, self.output[-1]
        part, out = item["content"][0], []
        about = {**self._at, "content_index": 0}
        more = {"logprobs": part["logprobs"]} if part["type"] == "output_text" else {}
        out.append(self._event(f"response.{part['type']}.done", **about, text=part["text"], **more))
        out.append(self._event("response.content_part.done", **about, part=part))
        for summary in item.get("summary", ()):
            about = {**self._at, "summary_index": 0}
            out.append(self._event("response.reasoning_summary_text.done", **about, text=summary["text"]))
            out.append(self._event("response.reasoning_summary_part.done", **about, part=summary))
        item["status"] = "incomplete" if self._cut_off else "completed"
        if item["type"] == "reasoning" and self._seals:
            item["encrypted_content"] = sealed(part["text"])
        return [*out, self._done()]

    def _done(self) -> str:
        return self._event("response.output_item.done", output_index=len(self.output) - 1, item=self.output[-1])

    # -- calls ----------------------------------------------------------------------------------------------------

    def _call(self, call: Call) -> list[str]:
        known = self.asked.names.get(call.name, ToolName(call.name))
        kind, field, event, said = "function_call", "arguments", "function_call_arguments", call.arguments
        if known.custom:
            kind, field, event, said = "custom_tool_call", "input", "custom_tool_call_input", custom_input(said)
        item = {"id": new_id("ctc_" if known.custom else "fc_"), "type": kind, "call_id": call.id, "name": known.name}
        item |= {field: "", "status": "in_progress"} | ({"namespace": known.namespace} if known.namespace else {})
        out = self._added(item)
        item |= {field: said, "status": "completed"}
        out.append(self._event(f"response.{event}.delta", **self._at, delta=said))
        named = {} if known.custom else {"name": known.name}
        out.append(self._event(f"response.{event}.done", **self._at, **{field: said}, **named))
        return [*out, self._done()]


def usage_of(usage: Usage) -> dict:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }
