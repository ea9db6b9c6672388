"""The documentation site: its pages that are made of code, and its tests."""
