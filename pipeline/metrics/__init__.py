"""Figures on arrays: CKA, nearest neighbours, classification, bootstrap. Independent of files and encoders."""
