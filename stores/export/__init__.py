"""Copies of a store for others: without names, without pixels, in fewer bytes.

`export` is the door. `pseudonyms` makes the new names, `deidentify` writes files under them, and `leak_check` searches
the copy for the old ones. `recode` writes features with other codecs or as int8.
"""
