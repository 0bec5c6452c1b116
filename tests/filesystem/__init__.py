"""Tests of filesystem."""
