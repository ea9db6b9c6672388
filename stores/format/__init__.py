"""stores/format."""
