"""An MCP server as a child process: only the environment it is given, its lines and floods bounded, its end sure."""

import os
import signal
from asyncio import create_subprocess_exec
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import mcp_types
from mcp.shared.message import SessionMessage

from v4cli import system
from v4cli.interrupts import killing
from v4cli.settings import McpServer

INHERITED = ("PATH", "HOME", "LANG")
WINDOWS = (  # the same there
    *system.NEEDED, "APPDATA", "HOMEDRIVE", "HOMEPATH", "LOCALAPPDATA", "PROCESSOR_ARCHITECTURE", "ProgramFiles",
    "TEMP", "TMP", "USERNAME", "USERPROFILE",
)  # fmt: skip
MAX_LINE = 8 << 20  # bytes of one message
MAX_UNASKED = 32 << 20  # bytes without a message of ours in between
MAX_GARBAGE = 100  # lines that are no messages
MAX_STDERR = 2000  # bytes kept
GRACE_S = 1.0  # to leave when told to, before it is killed
HURRY_S = 0.08  # the same when the user interrupts


class Child:
    """A running server: its messages as the SDK takes them, and what went wrong with it."""

    def __init__(self, process: Process):
        self.process = process
        self.fault = ""  # why it was cut off
        self.garbage: list[str] = []  # lines that are no messages
        self.stderr = b""
        self.unasked = 0
        self.grace_s = GRACE_S
        self.to_session, self.received = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        self.sent, self.from_session = anyio.create_memory_object_stream[SessionMessage](0)

    @property
    def why(self) -> str:
        """What is known about its silence, for people and for the model."""
        code = self.process.returncode
        said = self.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or self.garbage[:1]
        reason = self.fault or ("" if code is None else f"it ended with code {code}")
        return ": ".join(filter(None, [reason, *(line[:200] for line in said)]))

    async def read(self) -> None:
        """Pass messages on until it ends or has to be cut off."""
        async with self.to_session:
            with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
                while line := await self._line():
                    try:
                        message = mcp_types.jsonrpc_message_adapter.validate_json(line, by_name=False)
                    except ValueError:
                        self.garbage += [line[:800].decode("utf-8", "replace").strip()] if line.strip() else []
                        continue
                    await self.to_session.send(SessionMessage(message))
            if self.fault:
                _signal(self.process, system.KILL)
            await self._gone()  # before the session learns of it, so that `why` is complete

    async def _line(self) -> bytes:
        """Its next line; nothing at its end, or if it sends too much."""
        try:
            line = await self.process.stdout.readline()
        except ValueError:
            self.fault = f"it sent a message of more than {MAX_LINE >> 20} MiB"
            return b""
        self.unasked += len(line)
        if self.unasked > MAX_UNASKED:
            self.fault = f"it sent more than {MAX_UNASKED >> 20} MiB without being asked"
        elif len(self.garbage) > MAX_GARBAGE:
            self.fault = "it does not speak MCP"
        return b"" if self.fault else line

    async def write(self) -> None:
        """Pass the session's messages to it."""
        async with self.from_session:
            with suppress(OSError):
                async for message in self.from_session:
                    self.unasked = 0
                    line = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                    self.process.stdin.write(line.encode() + b"\n")
                    await self.process.stdin.drain()

    async def read_stderr(self) -> None:
        while chunk := await self.process.stderr.read(1 << 16):
            self.stderr = (self.stderr + chunk)[-MAX_STDERR:]

    def hurry(self) -> None:
        """Its end must not take long."""
        self.grace_s = HURRY_S

    async def end(self) -> None:
        """Close its input, wait, then end it and all that it started."""
        self.received.close()
        self.sent.close()
        self.process.stdin.close()
        for number in (signal.SIGTERM, system.KILL):
            await self._gone()
            _signal(self.process, number)
        await self._gone()
        self.process._transport.close()  # a descendant that got away may hold the pipes

    async def _gone(self) -> None:
        """Wait for its end, but not for long."""
        with anyio.move_on_after(self.grace_s):
            await self.process.wait()


@asynccontextmanager
async def stdio(server: McpServer, children: list[Child]) -> AsyncIterator[tuple]:
    """Start a server: streams of its messages and to it, for mcp.Client. It is added to `children`.

    OSError if it cannot be started.
    """
    inherited = WINDOWS if system.WINDOWS else INHERITED
    given = {name: os.environ[name] for name in inherited if name in os.environ} | server.env
    cwd = os.path.expanduser(server.cwd) if server.cwd else None
    process = await create_subprocess_exec(
        system.program(server.command[0], given.get("PATH")), *server.command[1:],
        stdin=PIPE, stdout=PIPE, stderr=PIPE,
        env=given, cwd=cwd, limit=MAX_LINE, **system.APART,
    )  # fmt: skip
    child = Child(process)
    children.append(child)
    async with anyio.create_task_group() as tasks:
        for task in (child.read, child.write, child.read_stderr):
            tasks.start_soon(task)
        with killing(lambda: _signal(process, system.KILL)):
            try:
                yield child.received, child.sent
            finally:
                with anyio.CancelScope(shield=True):
                    await child.end()
            tasks.cancel_scope.cancel()


def _signal(process: Process, number: int) -> None:
    """To the process and all of its group; it may be gone."""
    with suppress(ProcessLookupError, PermissionError):
        system.kill_group(process.pid, number)
