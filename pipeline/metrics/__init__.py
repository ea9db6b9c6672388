"""Figures on arrays: CKA, nearest neighbours, classification, bootstrap. Knows no files and no encoders."""
