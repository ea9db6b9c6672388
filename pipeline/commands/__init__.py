"""The command line: parse, call one function, print. Everything heavy is imported inside the commands."""
