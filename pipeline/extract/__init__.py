"""Stage one, ``extract-teacher``: the teacher over every view of every patch, once; and ``plan``."""
