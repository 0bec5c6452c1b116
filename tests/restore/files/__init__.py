"""Tests of restore.files."""
