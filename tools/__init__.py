"""The commands: the shell scripts of this directory, and the Python behind them.

A script prepares the environment and hands its arguments, untouched, to the module of the same name. Only here are
errors turned into exit codes.
"""
