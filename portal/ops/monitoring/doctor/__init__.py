"""The doctor: each check is a function that returns one finding, and changes nothing.

Promises that what a backup or a restore would be refused for is found before. May import what `monitoring` may.
"""
