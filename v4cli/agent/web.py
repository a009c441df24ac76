"""The tool that fetches a page of the public web. Addresses of this machine and its networks are refused."""

import asyncio
import ipaddress
import socket
import threading
import time
import zlib
from collections.abc import Callable, Coroutine
from concurrent.futures import Future

from v4cli.agent import page
from v4cli.agent.tools import Context, Kind, Tool, ToolError, parameters

MAX_BYTES = 4 << 20
MAX_SECONDS = 30.0
MAX_REDIRECTS = 5
POLL_S = 0.05  # between looks at whether the user interrupted
TEXT_TYPES = ("text/", "application/json", "application/xml", "application/xhtml+xml", "application/javascript")
PIECE = 1 << 16  # bytes that are unpacked at once
# Python's own opinion on what is global has changed from version to version. These are the special-purpose registries
# of IANA; of IPv6, only 2000::/3 is given out at all.
SPECIAL = [ipaddress.ip_network(network) for network in (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
    "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    "2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20",
)]  # fmt: skip
GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")


def tools() -> list[Tool]:
    """fetch_url."""
    about = "Fetch a page or text file of the public web, as plain text"
    schema = parameters(["url"], url="http or https")
    return [Tool("fetch_url", about, schema, Kind.NETWORK, fetch_url, lambda arguments, context: arguments["url"])]


def fetch_url(arguments: dict, context: Context) -> str:
    """The text behind a URL; last, in brackets, what is missing or may be wrong."""
    import httpx2

    end = time.monotonic() + MAX_SECONDS

    def going_on() -> bool:
        return time.monotonic() < end and not context.cancelled()

    try:
        response, data, missing = asyncio.run(_while(going_on, _fetched(httpx2.URL(arguments["url"].strip()))))
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, UnicodeError, zlib.error) as error:
        raise ToolError(f"the page was not fetched: {str(error)[:300] or type(error).__name__}") from None
    except TimeoutError:
        late = f"it took longer than {MAX_SECONDS:g} seconds"
        raise ToolError("the user interrupted it" if context.cancelled() else late) from None
    return _text(data, missing, response.headers, response.charset_encoding or "", going_on)


async def _while(going_on: Callable[[], bool], work: Coroutine):
    """The result of the work, or TimeoutError as soon as it may not go on."""
    task = asyncio.ensure_future(work)
    while not task.done():
        if not going_on():
            task.cancel()
            raise TimeoutError
        await asyncio.wait([task], timeout=POLL_S)
    return task.result()


async def _fetched(url) -> tuple:
    """The response of the URL or where it redirects to, what was sent, and what is missing of it."""
    import httpx2

    headers = {"User-Agent": "v4cli", "Accept-Encoding": "gzip"}
    async with httpx2.AsyncClient(trust_env=False, timeout=MAX_SECONDS, headers=headers) as client:
        for _ in range(MAX_REDIRECTS + 1):
            async with client.stream("GET", **await _pinned(url)) as response:
                if not response.has_redirect_location:
                    return response, *await _body(response)
                url = url.join(response.headers["Location"])
                client.cookies.clear()
    raise ToolError(f"more than {MAX_REDIRECTS} redirects")


async def _pinned(url) -> dict:
    """A request for the URL that connects to the very address that was checked."""
    if url.scheme not in ("http", "https") or not url.host:
        raise ToolError("only http and https URLs with a host can be fetched")
    if url.userinfo:
        raise ToolError("a URL with a user name or password in it is not fetched")
    host, port = url.raw_host.decode("ascii"), url.port
    if port is None:
        port = 443 if url.scheme == "https" else 80
    if not 0 < port < 1 << 16:
        raise ToolError(f"there is no port {port}")
    address = await _apart(lambda: public_address(host, port))
    headers = {"Host": url.netloc.decode("ascii")}
    return {"url": url.copy_with(host=address), "headers": headers, "extensions": {"sni_hostname": host}}


def _apart(work: Callable) -> asyncio.Future:
    """The result of what cannot be interrupted, such as asking for an address, done by a thread that may be left."""
    future: Future = Future()
    future.set_running_or_notify_cancel()

    def do() -> None:
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=do, name="fetch", daemon=True).start()
    return asyncio.wrap_future(future)


def public_address(host: str, port: int) -> str:
    """An address of the host; ToolError if any of its addresses is not on the public internet."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError, OverflowError):
        raise ToolError(f"there is no host {host[:100]}, or no network") from None
    for address in found:
        if not _is_public(ipaddress.ip_address(address.partition("%")[0])):
            raise ToolError(f"{host} is an address of this machine or its network, which cannot be fetched from")
    return min(found, key=lambda address: ":" in address)  # IPv4 first: it works everywhere


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether it is a host of the internet; IPv6 addresses that carry an IPv4 one are not."""
    if address.version == 6 and address not in GLOBAL_IPV6:
        return False
    return not any(address in network for network in SPECIAL)


async def _body(response) -> tuple[bytes, list[str]]:
    """What was sent, if it is text, as far as it is taken; and what is missing."""
    if response.status_code >= 400:
        raise ToolError(f"the server answered {response.status_code} {response.reason_phrase[:100]}".strip())
    kind = response.headers.get("Content-Type", "text/plain").lower()
    if not kind.startswith(TEXT_TYPES):
        raise ToolError(f"it is not text but {kind[:100]}")
    packing = response.headers.get("Content-Encoding", "identity").lower()
    if packing not in ("identity", "gzip", "x-gzip"):
        raise ToolError(f"it is packed as {packing[:100]}, which was not asked for")
    unpack = None if packing == "identity" else zlib.decompressobj(wbits=31)
    data = bytearray()
    async for chunk in response.aiter_raw(PIECE):
        data += unpack.decompress(chunk, MAX_BYTES + 1) if unpack else chunk
        if len(data) > MAX_BYTES:
            return bytes(data[:MAX_BYTES]), [f"it is larger than {MAX_BYTES >> 20} MiB; this is its beginning"]
        if unpack and unpack.eof:
            return bytes(data), ["what comes after its packed part is left out"] if unpack.unused_data else []
    return bytes(data), ["the server has not sent the end of it"] if unpack and data else []


def _text(data: bytes, missing: list[str], headers, charset: str, going_on: Callable[[], bool]) -> str:
    """The page as text, and what has to be said about it."""
    is_html = "html" in headers.get("Content-Type", "").lower()
    text, notes = page.decoded(data, charset, is_html)
    if "\0" in text:
        raise ToolError("it is not text, though the server says so")
    if is_html:
        text, more = page.plain(text, going_on)
        notes += more
    return (
        "\n".join([*([text] if text else []), *(f"[{note}]" for note in [*notes, *missing])])
        or "[the page has no text]"
    )
