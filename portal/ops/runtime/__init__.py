"""The runtime of the engine: other programs, helper processes, progress, logs.

Promises that no child outlives its parent, that output is bounded, and that no secret reaches argv or a log. May import
settings and the core.
"""
