"""pipeline/tile."""
