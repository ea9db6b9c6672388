"""The command line: parse, call one function, print. Everything heavy is imported inside the commands.

`stages` and `store` hold the commands of their names, `evaluate` the protocols, and `tools` the rest. `click_options`
makes command line options of option dataclasses.
"""
