"""Deployment: the features of slides or tiles with any encoder, in the formats of the field.

`embed` is the door. `block` says what is kept of a block, `parts` holds it until its slide is whole, and `publish`
turns whole slides into files of one of the `formats`. `tiles` reads a CSV of tiles.
"""
