"""pipeline/views."""
