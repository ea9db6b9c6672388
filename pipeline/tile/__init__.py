"""``tile``: tissue, the patch grid, splits by patient, and a picture of each slide."""
