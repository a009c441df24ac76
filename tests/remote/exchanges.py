"""What servers send, word for word as their sources write it, and a server that sends it.

vLLM 0.33: vllm/entrypoints/openai/completion/serving.py, completion_stream_generator. SGLang 0.5: the events of
/generate, python/sglang/srt/managers/tokenizer_manager.py, whose lists hold all tokens so far, or with
--incremental-streaming-output the new ones. Neither was run for these.
"""

import json
import socket
import threading

EOS = 1


def sse(*events) -> bytes:
    return b"".join(b"data: " + (e if isinstance(e, bytes) else json.dumps(e).encode()) + b"\n\n" for e in events)


def reply(body: bytes, kind: str = "text/event-stream", status: str = "200 OK") -> bytes:
    """Closed at its end, as it has no length."""
    return f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n".encode() + body


def models(owner: str, name: str = "nano", **more) -> bytes:
    its = {"id": name, "object": "model", "owned_by": owner, **more}
    return reply(json.dumps({"object": "list", "data": [its]}).encode(), "application/json")


def vllm(
    ids: list[int], cached: int = 0, per_event: int = 1, prompt: tuple[int, ...] = (5, 6), by_id: bool = False
) -> bytes:
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "nano"}
    events = []
    for at in range(0, len(ids), per_event):
        new = ids[at : at + per_event]
        is_last = at + per_event >= len(ids)
        logprobs = {
            "text_offset": [0] * len(new), "token_logprobs": [-0.5] * len(new), "tokens": ["x"] * len(new),
            "top_logprobs": [
                {f"token_id:{token}": -0.5, "token_id:9": -0.25, "token_id:8": -3.0} if by_id else {"x": -0.5}
                for token in new
            ],
        }  # fmt: skip
        choice = {"index": 0, "text": "x", "logprobs": logprobs, "finish_reason": None, "stop_reason": None}
        choice |= {"prompt_token_ids": list(prompt) if at == 0 else None, "token_ids": new}
        choice |= {"finish_reason": "stop" if new[-1] == EOS else "length"} if is_last else {}
        events.append(head | {"choices": [choice]})
    usage = {"prompt_tokens": 2, "completion_tokens": len(ids), "total_tokens": 2 + len(ids)}
    usage |= {"prompt_tokens_details": {"cached_tokens": cached}} if cached else {}
    return reply(sse(*events, head | {"choices": [], "usage": usage}, b"[DONE]"))


def sglang(ids: list[int], cached: int = 0, incremental: bool = False) -> bytes:
    events = []
    for n in range(1, len(ids) + 1):
        told = ids[n - 1 : n] if incremental else ids[:n]
        finish = (
            ({"type": "stop", "matched": EOS} if ids[-1] == EOS else {"type": "length", "length": n})
            if n == len(ids)
            else None
        )
        about = {
            "id": "a", "finish_reason": finish, "prompt_tokens": 2, "completion_tokens": n, "cached_tokens": cached,
            "output_token_logprobs": [[-0.5, token, None] for token in told],
            "output_top_logprobs": [[[-0.25, 9, None], [-0.5, token, None]] for token in told],
        }  # fmt: skip
        events.append({"text": "x", "output_ids": told, "meta_info": about})
    return reply(sse(*events, b"[DONE]"))


class Scripted:
    """Answers one request after the other with the given bytes, and hangs up; `asked`: what was asked."""

    def __init__(self, *replies: bytes):
        self.asked: list[tuple[str, dict, dict]] = []  # path, headers, body
        self.hung_up = threading.Event()
        self._replies = list(replies)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while self._replies:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                path = stream.readline().split()[1].decode()
                lines = iter(lambda stream=stream: stream.readline().strip().decode(), "")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = stream.read(int(headers.get("content-length", 0)))
                self.asked.append((path, headers, json.loads(body or b"{}")))
                reply = self._replies.pop(0)
                connection.sendall(reply)
                if reply.endswith(b"\n: goes on\n\n"):
                    stream.read()  # until the other side hangs up
                    self.hung_up.set()
        self._socket.close()
