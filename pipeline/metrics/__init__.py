"""pipeline/metrics."""
