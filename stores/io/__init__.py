"""Files: atomic writing, locations, staging, text. Knows nothing of the format."""
