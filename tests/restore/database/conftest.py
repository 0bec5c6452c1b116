"""Databases to restore."""

from __future__ import annotations

from tests.support.database_restores import owned, portal, rich

__all__ = ["owned", "portal", "rich"]
