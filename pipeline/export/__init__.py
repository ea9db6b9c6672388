"""A student leaves Python: ONNX, TorchScript, WSInfer's folder, a timm folder. `export` is the verb.

`graph` is what is exported, with Normalize and pooling inside; a file for each format writes it and runs what it wrote;
`check` compares that with the original, on the pixels of `pixels`; `card` says all of it.
"""
