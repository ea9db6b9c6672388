"""``demo`` and ``doctor``: both stages on painted slides, and a check of the machine."""
