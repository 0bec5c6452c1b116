"""Fixtures, servers and sample data that tests share."""
