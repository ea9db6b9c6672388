"""Slide files: opening, resolution, patches read by OpenSlide or by a faster reader that proves itself."""
