"""The description of a store for people and for data-set hubs.

`card` writes README.md and calls `croissant` for croissant.json, the machine-readable form.
"""
