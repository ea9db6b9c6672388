"""``store verify`` beyond the structure.

`verify` is the door. `slide_views` renders the views of a slide again, computes their features again, and compares.
`repair` makes what is broken again.
"""
