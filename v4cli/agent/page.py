"""What a page of the web says: bytes to text, HTML to plain text. The time it takes grows with the size of the page and
with nothing else."""

import codecs
import html
import re
from collections.abc import Callable, Iterator

# Those that pages are written in, as Python names them. Others that it knows are not of text (zip, base64), or read
# something else than text as text (idna, unicode_escape).
ENCODINGS = re.compile(
    r"utf-(8|16|16-le|16-be|32)|ascii|iso8859-\d+|cp125\d|cp(437|850|866|874|932|949|950)|koi8-[ru]|tis-620|mac-roman"
    r"|gb(2312|k|18030)|hz|big5(hkscs)?|euc_(jp|kr)|shift_jis|iso2022_(jp|kr)"
)
# What browsers read instead: supersets, which pages are in that say they are in the smaller one.
SUPERSETS = {
    "ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "gb2312": "gb18030", "gbk": "gb18030",
    "shift_jis": "cp932", "euc_kr": "cp949", "tis-620": "cp874",
}  # fmt: skip
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
META = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?(?!utf-16)([\w.:-]{1,40})", re.IGNORECASE)
SKIPPED = {"script", "style", "noscript", "template", "svg", "iframe", "select"}
RAW = {"script", "style", "iframe"}  # hold no tags but the one that ends them
BLOCKS = {
    "article", "blockquote", "br", "dd", "div", "dt", "footer", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr",
    "li", "main", "nav", "ol", "p", "pre", "section", "table", "title", "tr", "ul",
}  # fmt: skip
MARKUP = re.compile(r"<(?=[a-zA-Z/!?])")
TAG = re.compile(r"</?([a-zA-Z][^\s/>]{0,63})")
IN_TAG = re.compile(r">|=\s*[\"']")  # the end, or the beginning of a value that may contain one
UNENDED = "<"  # in place of a tag: markup that goes on to the end of the page
ZEROS = re.compile(r"(&#[xX]?)0+(?=[0-9a-fA-F])")
LONG_NUMBER = re.compile(r"&#(?:[0-9]{8,}|[xX][0-9a-fA-F]{7,});?")  # of no character
CHECK_EVERY = 1000  # tags
MAX_DEPTH = 64  # of elements that are not shown, within which the beginning of one is looked for


def decoded(data: bytes, declared: str, is_html: bool) -> tuple[str, list[str]]:
    """The text in the encoding it begins to be in, is said to be in (`declared`) or says it is in, else UTF-8; and what
    has to be said about it."""
    mark = next((encoding for start, encoding in MARKS.items() if data.startswith(start)), "")
    meta = META.search(data, 0, 4096) if is_html else None
    name = mark or declared or (meta[1].decode("ascii") if meta else "utf-8")
    notes = []
    try:
        encoding = codecs.lookup(name).name
    except (LookupError, ValueError):
        encoding = ""
    if not mark and not ENCODINGS.fullmatch(encoding):
        notes.append(f"read as UTF-8: {name[:40]!r} is no encoding of text")
        encoding = "utf-8"
    encoding = SUPERSETS.get(encoding, encoding)
    n_before = data.count("\ufffd".encode())
    text = data.decode(encoding, "replace")
    if (n := text.count("\ufffd")) > n_before:
        notes.append(f"{n} character{'s' * (n > 1)} could not be read as {encoding}")
    return text, notes


def plain(page: str, going_on: Callable[[], bool]) -> tuple[str, list[str]]:
    """The text of a page, a block a line, and what has to be said about it; ends early when `going_on()` is false."""
    parts: list[str] = []
    notes: list[str] = []
    around: list[str] = []  # elements that are not shown, and in which it is
    for n, (text, tag) in enumerate(_tokens(page)):
        if text and not around:
            parts.append(html.unescape(LONG_NUMBER.sub("\ufffd", ZEROS.sub(r"\1", text))))
        name = tag.removeprefix("/")
        if tag in SKIPPED:
            around.append(tag)
        elif name in SKIPPED and name in around[-MAX_DEPTH:]:
            while around.pop() != name:
                pass
        if name in BLOCKS:
            parts.append("\n")
        if n % CHECK_EVERY == 0 and not going_on():
            notes.append("the page took too long to read; this is its beginning")
            break
        if tag == UNENDED:
            notes.append("the page ends inside a tag or comment that is not closed; what is in it is not shown")
    if around and not notes:
        notes.append(f"the page ends inside a {around[0]} element that is not closed; what is in it is not shown")
    lines = (" ".join(line.split()) for line in "".join(parts).split("\n"))
    return "\n".join(line for line in lines if line), notes


def _tokens(page: str) -> Iterator[tuple[str, str]]:
    """Pieces of text, each with the name of the tag after it: "br", "/p", or nothing for what is not seen. As in
    browsers, a tag or comment that is not closed goes on to the end of the page; so nothing is read twice."""
    at = 0
    while found := MARKUP.search(page, at):
        start, text, tag = found.start(), page[at : found.start()], ""
        if page.startswith("<!--", start):
            at = _after(page, "-->", start + 2)
        elif match := TAG.match(page, start):
            name = match[1].lower()
            at, tag = _tag_end(page, match.end()), "/" * (page[start + 1] == "/") + name
            if tag == "svg" and page.endswith("/>", start, at):
                tag = ""  # the only one of them that can be empty
            if tag in RAW:
                yield text, tag
                text, tag = "", "/" + name
                close = re.compile(f"</{name}(?=[\\s/>])", re.IGNORECASE).search(page, at)
                if close is None:
                    return
                at = _tag_end(page, close.end())
        else:
            at = _after(page, ">", start + 2)
        yield text, UNENDED if at > len(page) else tag
    yield page[at:], ""


def _after(page: str, mark: str, at: int) -> int:
    """The place after the mark; if there is none, one after the end."""
    found = page.find(mark, at)
    return len(page) + 1 if found < 0 else found + len(mark)


def _tag_end(page: str, at: int) -> int:
    """Where a tag ends: at the first > outside of the values of its attributes; if there is none, after the end."""
    while match := IN_TAG.search(page, at):
        if match[0] == ">":
            return match.end()
        at = _after(page, match[0][-1], match.end())
    return len(page) + 1
