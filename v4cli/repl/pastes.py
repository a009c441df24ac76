"""Pastes: long ones stand as a marker in the input until it is sent, and come in at once however long they are."""

LINES, CHARACTERS = 8, 1000  # what is longer is shown as a marker
START, END = "\x1b[200~", "\x1b[201~"  # what a terminal puts around a paste
PIECE = 1 << 16  # bytes read at a time


class Pastes:
    """Long pastes by the marker that stands for them."""

    def __init__(self):
        self.texts: dict[str, str] = {}

    def taken(self, text: str) -> str:
        """What to put into the input for a paste: the text, or a marker."""
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        n_lines = text.count("\n") + 1
        if n_lines <= LINES and len(text) <= CHARACTERS:
            return text
        number = f" #{len(self.texts) + 1}" if self.texts else ""
        marker = f"[pasted{number}: {_size(len(text.encode(errors='replace')))}, {n_lines:,} lines]"
        self.texts[marker] = text
        return marker

    def expanded(self, text: str) -> str:
        """The text with every marker replaced by what was pasted."""
        for marker, pasted in self.texts.items():
            if marker in text:
                text = text.replace(marker, pasted)
        return text


def _size(n_bytes: int) -> str:
    for unit, size in (("MB", 1_000_000), ("kB", 1000)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes} B"


class PasteReader:
    """Reads what is typed from `reader` (prompt_toolkit's), and holds a paste back until all of it is there: looking
    for its end anew with every piece would take seconds for a megabyte."""

    def __init__(self, reader):
        self.reader = reader
        self._held: list[str] = []  # of a paste that goes on
        self._last = ""  # its last characters

    @property
    def closed(self) -> bool:
        return self.reader.closed

    def read(self) -> str:
        """What has come; nothing while a paste goes on."""
        data = self.reader.read(PIECE)
        if self._held:
            self._held.append(data)
            recent = self._last + data
            self._last = recent[-len(END) :]
            if END not in recent:
                return ""
            data, self._held = "".join(self._held), []
        start = data.rfind(START)
        if start >= 0 and END not in data[start:]:
            self._held, self._last, data = [data[start:]], data[start:][-len(END) :], data[:start]
        return data
