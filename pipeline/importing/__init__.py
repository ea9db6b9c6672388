"""``store import``: features that another tool computed, as a store of one view, the un-augmented patch.

`importer` does it, `h5_files` reads the files of TRIDENT and CLAM, `declared` says what is known of their encoder.
"""
