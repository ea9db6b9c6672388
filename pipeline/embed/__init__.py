"""Deployment: the features of slides or tiles with any encoder, in the formats of the field."""
