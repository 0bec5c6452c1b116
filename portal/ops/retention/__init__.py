"""Retention: the policy, the plan that follows from it, the prune that carries it out, and pins.

Promises that nothing is removed that a kept archive needs. May import chains, repository and what these may.
"""
