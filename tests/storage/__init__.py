"""Tests of the stores and of the encryption."""
