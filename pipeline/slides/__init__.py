"""Slide files and the pixels of patches.

`contract` says what a reader of a file format does, `registry` lists the readers, `find` says which slide files the
inputs hold, `sources` says where the patches of one slide come from, and `pool` reads them in threads or processes.
"""
