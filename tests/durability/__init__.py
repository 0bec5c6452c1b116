"""Tests of durability: what was reported as done is there after the power was cut."""
