"""How a text that somebody else wrote is shown on a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` with control and format characters spelt out (ESC is `\\x1b`), so that it cannot steer a terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
