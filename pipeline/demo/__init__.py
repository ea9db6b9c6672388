"""pipeline/demo."""
