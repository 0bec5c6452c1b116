"""`backup.sh keygen`: creates the key for encrypting off-site copies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tools.terminal.output import print_result, say

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser, _name: str) -> None:
    """Define the command's arguments."""
    parser.add_argument("--output", metavar="FILE", required=True, help="new file for the secret key (mode 0600)")


def run(arguments: argparse.Namespace) -> int:
    """Create a key; show only its public part."""
    from portal.ops.storage.age_keys import generate

    made = generate(Path(os.path.abspath(arguments.output)))
    say(f"the secret key is in {made.path}")
    say(f"recipient: {made.recipient}")
    say("Make two keys, and set BACKUP_ENCRYPTION_RECIPIENTS to both recipients, separated by a space.")
    say("Keep each file apart from the backups and from the other one: in a safe, in a password manager, on paper.")
    say("Without any of them the copies cannot be read; with one of them anyone can read them.")
    print_result({"success": True, "identity_file": str(made.path), "recipient": made.recipient})
    return 0
