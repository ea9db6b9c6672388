"""pipeline/encoders."""
