"""pipeline/inference."""
