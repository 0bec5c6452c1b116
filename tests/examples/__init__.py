"""The examples to copy."""
