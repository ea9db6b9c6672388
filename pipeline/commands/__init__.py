"""pipeline/commands."""
