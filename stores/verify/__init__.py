"""The structure of a store: is everything there that it promises; seal, reindex."""
