"""Stores behind a URL.

`objects` lists, reads and writes files with retries. `store` opens a store for reading, with a bounded cache;
`transfer` copies whole stores up and down.
"""
