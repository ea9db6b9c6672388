"""What long work calls to report how far it is."""

from collections.abc import Callable

Progress = Callable[[int, str], None]
"""``progress(bytes, slide_id)``: told after each piece of work."""
