"""stores/publish."""
