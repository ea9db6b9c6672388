"""Stage two, ``distill``: trains a student against a store. Imports nothing that loads a teacher."""
