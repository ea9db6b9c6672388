"""Committed views, read back: batches of (view, target) for training, verification and the report."""
