"""pipeline/embed/formats."""
