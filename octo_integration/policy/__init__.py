"""A run as a policy."""

from octo_integration.policy.policy import Policy, act_together, load_policy

__all__ = ["Policy", "act_together", "load_policy"]
