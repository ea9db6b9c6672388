"""Augmented views: what a seed draws under a policy, and the pixels that result. Equal on every machine.

`policy` is a distribution of views and `draw` takes a sample from it. `render` makes the pixels with the integer
`operations`. `patch_views` does this for one patch under several seeds.
"""
