"""Copies of a store that leave something out: names, pixels, precision."""
