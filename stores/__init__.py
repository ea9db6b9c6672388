"""The nouns on disk: recipe, manifest, features, pixels, sampler. Knows nothing of models or slides."""
