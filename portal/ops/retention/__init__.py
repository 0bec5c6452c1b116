"""Retention: the policy, the plan that follows from it, the prune that executes it, and pins.

Promises that nothing is removed that a kept archive needs. May import pitr, chains, repository and the rooms below
them.
"""
