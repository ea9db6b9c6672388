"""Encoders by name: presets, architectures, weights in every published layout, export."""
