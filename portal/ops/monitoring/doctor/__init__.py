"""The doctor: each check is a function that returns one finding, and changes nothing.

Promises that whatever would make a backup or a restore fail is found in advance. May import the rooms that `monitoring`
may.
"""
