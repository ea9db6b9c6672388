"""Prototypes of the teacher's features and tokens, for the DINO and iBOT losses."""
