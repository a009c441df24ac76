"""The page at /: a chat and the state of the engine, for people. One file that asks nobody but this server."""

import base64
import hashlib
import re
from functools import cache
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response


async def page(request: Request) -> Response:
    """The page itself holds nothing secret: it asks for the key, if there is one, as any client."""
    html, headers = _made()
    return Response(html, headers=headers, media_type="text/html")


@cache
def _made() -> tuple[bytes, dict[str, str]]:
    """The page, and headers that let a browser run and fetch nothing else than what it is made of."""
    html = resources.files("v4cli.serve").joinpath("page.html").read_bytes()
    script, style = (_hash(html, tag) for tag in (b"script", b"style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }


def _hash(html: bytes, tag: bytes) -> str:
    """By which a policy knows the only element of this kind."""
    (text,) = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
