"""Names from a storage, made fit to be shown: nobody vouches for what is in them."""

from __future__ import annotations

# What a spreadsheet takes for the beginning of a formula (OWASP, "CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def shown(name: str) -> str:
    """*name* with everything escaped that is no printable character, or no UTF-8.

    A terminal would obey an escape sequence; a right-to-left mark would turn a line around.
    """
    if name.isascii() and name.isprintable():
        return name
    try:
        text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        # Half of a pair, as JSON can spell it: no byte of any name, and not printable either.
        text = name
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def cell(name: str) -> str:
    """*name* for a CSV file: shown, and no formula for whichever program opens it."""
    text = shown(name)
    return f"'{text}" if text.startswith(_FORMULA) else text
