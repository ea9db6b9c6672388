"""stores/combine."""
