"""ManiSkill, and the only place that touches its private parts: environments, observations, variations, planners."""
