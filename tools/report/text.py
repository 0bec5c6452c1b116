"""The one way for text into the page: markup and control characters of others are escaped."""

from __future__ import annotations

from html import escape

from portal.ops.units import printable


def shown(text: str) -> str:
    """Text as the page may contain it, between tags and in attributes."""
    return escape(printable(text, most=None))
