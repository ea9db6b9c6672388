"""pipeline/slides."""
