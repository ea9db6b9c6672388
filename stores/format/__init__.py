"""The store format: recipe, manifest, arrays of features, tokens and pixels, and where each file is."""
