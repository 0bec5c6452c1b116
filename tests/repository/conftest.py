"""Repositories to work in."""

from __future__ import annotations

from tests.support.repositories import public_directory, repository

__all__ = ["public_directory", "repository"]
