"""Tests of restore.database."""
