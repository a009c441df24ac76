"""The keys that decide about a tool call, and what they mean."""

CHOICES = {
    "y": "yes, once",
    "s": "yes, for this session",
    "a": "always in this folder",
    "n": "no",
    "e": "no, and say why",
}
