"""The files that other tools read, one format in each module; `registry` lists them."""
