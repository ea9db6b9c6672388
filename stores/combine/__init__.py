"""New stores from old ones.

`merge` unites stores, `subset` takes a part of one. `reconcile` decides what each store gives to a slide and where two
contradict each other, `copy_slide` copies it, `where` chooses slides by the columns of their table.
"""
