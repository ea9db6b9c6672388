"""``evaluate``: protocols that measure an encoder by its embeddings.

`protocols` is the door. `embeddings` loads samples and their columns, each protocol has a file of its own, `result`
holds the figures, and `tables` runs several encoders on several tasks.
"""
