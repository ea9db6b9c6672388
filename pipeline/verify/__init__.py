"""pipeline/verify."""
