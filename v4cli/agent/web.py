"""The tool that fetches a page of the public web. Addresses of this machine and its networks are refused."""

import codecs
import ipaddress
import socket
import time
from html.parser import HTMLParser

from v4cli.agent.tools import Context, Kind, Tool, ToolError, parameters

MAX_BYTES = 4 << 20
MAX_SECONDS = 30.0
MAX_REDIRECTS = 5
TEXT_TYPES = ("text/", "application/json", "application/xml", "application/xhtml+xml", "application/javascript")
SKIPPED = {"script", "style", "noscript", "template", "svg", "iframe", "select"}
BLOCKS = {
    "article", "blockquote", "br", "dd", "div", "dt", "footer", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr",
    "li", "main", "nav", "ol", "p", "pre", "section", "table", "title", "tr", "ul",
}  # fmt: skip


def tools() -> list[Tool]:
    """fetch_url."""
    about = "Fetch a page or text file of the public web, as plain text"
    schema = parameters(["url"], url="http or https")
    return [Tool("fetch_url", about, schema, Kind.NETWORK, fetch_url, lambda arguments, context: arguments["url"])]


def fetch_url(arguments: dict, context: Context) -> str:
    """The text behind a URL."""
    import httpx2

    end = time.monotonic() + MAX_SECONDS
    try:
        url = httpx2.URL(arguments["url"])
        with httpx2.Client(trust_env=False, timeout=10.0, headers={"User-Agent": "v4cli"}) as client:
            for _ in range(MAX_REDIRECTS + 1):
                with client.stream("GET", **_pinned(url)) as response:
                    if response.has_redirect_location:
                        url = url.join(response.headers["Location"])
                    else:
                        return _text(response, _body(response, end, context))
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, UnicodeError) as error:
        raise ToolError(f"the page was not fetched: {error or type(error).__name__}") from None
    raise ToolError(f"more than {MAX_REDIRECTS} redirects")


def _pinned(url) -> dict:
    """A request for the URL that connects to the very address that was checked."""
    if url.scheme not in ("http", "https") or not url.host:
        raise ToolError("only http and https URLs with a host can be fetched")
    host = url.host
    headers = {"Host": url.netloc.decode("ascii").rpartition("@")[2]}
    address = public_address(host, url.port or (443 if url.scheme == "https" else 80))
    return {"url": url.copy_with(host=address), "headers": headers, "extensions": {"sni_hostname": host}}


def public_address(host: str, port: int) -> str:
    """An address of the host; ToolError if any of its addresses is not on the public internet."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        raise ToolError(f"there is no host {host}, or no network") from None
    for address in found:
        if not _is_public(ipaddress.ip_address(address.partition("%")[0])):
            raise ToolError(f"{host} is an address of this machine or its network, which cannot be fetched from")
    return min(found, key=lambda address: ":" in address)  # IPv4 first: it works everywhere


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether it is a host of the internet; IPv6 addresses that carry an IPv4 one are not."""
    if address.version == 6 and (address.ipv4_mapped or address.sixtofour or address.teredo):
        return False
    return address.is_global and not address.is_multicast and address not in ipaddress.ip_network("64:ff9b::/96")


def _body(response, end: float, context: Context) -> bytes:
    """What was sent, if it is text and of bounded size."""
    kind = response.headers.get("Content-Type", "text/plain").lower()
    if response.status_code >= 400:
        raise ToolError(f"the server answered {response.status_code} {response.reason_phrase}".strip())
    if not kind.startswith(TEXT_TYPES):
        raise ToolError(f"it is not text but {kind}")
    data = b""
    for chunk in response.iter_bytes():
        data += chunk
        if len(data) > MAX_BYTES:
            raise ToolError(f"it is larger than {MAX_BYTES >> 20} MiB")
        if time.monotonic() > end or context.cancelled():
            raise ToolError("it took too long" if time.monotonic() > end else "the user interrupted it")
    return data


def _text(response, data: bytes) -> str:
    """The page as text, in the encoding it says it has."""
    try:
        encoding = codecs.lookup(response.charset_encoding or "utf-8").name
    except LookupError:
        encoding = "utf-8"
    text = data.decode(encoding, "replace")
    return plain(text) if "html" in response.headers.get("Content-Type", "") else text


def plain(html: str) -> str:
    """The text of a page, a block a line."""
    parser = _Text()
    parser.feed(html)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.parts).split("\n"))
    return "\n".join(line for line in lines if line)


class _Text(HTMLParser):
    """Collects what a browser would show."""

    def __init__(self):
        super().__init__()
        self.parts: list[str] = []
        self.skipped = 0  # depth in elements that are not shown

    def handle_starttag(self, tag, attrs):
        self.skipped += tag in SKIPPED
        self.parts.append("\n" if tag in BLOCKS else "")

    def handle_endtag(self, tag):
        self.skipped -= tag in SKIPPED and self.skipped > 0
        self.parts.append("\n" if tag in BLOCKS else "")

    def handle_data(self, data):
        if not self.skipped:
            self.parts.append(data)
