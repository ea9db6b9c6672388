"""pipeline/distill/prototypes."""
