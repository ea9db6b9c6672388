"""Stage one, ``extract-teacher``, and ``plan``.

`extract` is the door: every view of every patch goes through the teacher, once, into the store. `tasks` cuts the work,
`block` says what is kept of a block and writes it, and `plan` calculates the cost before anything runs.
"""
