"""stores/remote."""
