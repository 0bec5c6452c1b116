"""The common part of every command: text for people, JSON for programs, progress, signals and exit codes.

On a terminal a person reads text. Standard output that is not a terminal gets one JSON object instead, and the text
goes to standard error.
"""

from tools.terminal.run import StoppedError, run_command

__all__ = ["StoppedError", "run_command"]
