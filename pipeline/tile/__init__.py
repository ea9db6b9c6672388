"""``tile``: tissue, the patch grid, splits by patient, and a picture of each slide.

`tile` is the door. `tissue` and `masks` find tissue, `grid` lays the patches, `slides_csv` reads what users know of
their slides, and `picture` draws the outcome.
"""
