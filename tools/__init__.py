"""The commands: the shell scripts of this directory, and the Python behind them.

A script prepares the environment and passes its arguments unchanged to the module of the same name. Only here are
errors turned into exit codes. May import beat, worker and the engine; contains no decision about backups.
"""
