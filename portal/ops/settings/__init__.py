"""Settings: one declarative table, the parsers of its values, and the loading of all of them.

Promises that a value that is invalid is named with its variable, and that a secret is never shown. Pure: the
environment is an argument. May import the core.
"""
