"""The only way for text into the page: markup and control characters are escaped."""

from __future__ import annotations

from html import escape

from portal.ops.units import printable


def shown(text: str) -> str:
    """Escape text for the page, between tags and in attributes."""
    return escape(printable(text, most=None))
