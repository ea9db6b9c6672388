"""Augmented views: what a seed draws under a policy, and the pixels that result. Equal on every machine."""
