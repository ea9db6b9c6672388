"""Stores behind URLs: a bounded cache, and copying to and from buckets."""
