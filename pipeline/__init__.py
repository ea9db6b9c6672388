"""The verbs: tile, extract-teacher, distill, evaluate. Imports `stores`, never `cli`."""
