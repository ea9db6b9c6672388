"""One HTML page about a run or a store, with everything in it: pictures, figures, styles and script."""
