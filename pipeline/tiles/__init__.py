"""Tiles: images that were cut before, in the place of slides.

`table` lists the tiles of the inputs, `image` and `hdf5` read one, and `source` reads the patches of a group of tiles.
`places` finds where the pixels of a store come from, slides or tiles.
"""
