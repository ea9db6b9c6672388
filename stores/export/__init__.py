"""stores/export."""
