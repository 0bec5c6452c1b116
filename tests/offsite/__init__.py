"""Tests of off-site copies."""
