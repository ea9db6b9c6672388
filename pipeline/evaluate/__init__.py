"""Evaluation protocols on arrays, one a file."""
