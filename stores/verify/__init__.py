"""stores/verify."""
