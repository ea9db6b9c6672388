"""An encoder over blocks of patches: read, render, encode, hand over. Stage one, embed and verify use it."""
