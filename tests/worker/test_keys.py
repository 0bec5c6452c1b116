"""The keys that tasks are signed with."""
