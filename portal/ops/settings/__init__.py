"""Settings: one declarative table, the parsers of values, and the loading of all settings.

Promises that an invalid value is reported with its variable, and that no secret is shown. Pure: the environment is an
argument. May import the core.
"""
