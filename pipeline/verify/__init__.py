"""``store verify`` beyond the structure: views rendered again, features computed again, repair."""
