"""stores/io."""
