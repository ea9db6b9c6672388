"""An encoder over blocks of patches: read, render, encode, hand over.

`worker` is the door: what a stage sends to its workers. `loaded` puts an encoder on its device, `engine` runs it over
the blocks of `task`, and `facts` says to the planning process what was loaded. Stage one, ``embed`` and ``store
verify`` use it.
"""
