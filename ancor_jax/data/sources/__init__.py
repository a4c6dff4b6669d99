"""Data sets: one module per kind of source."""
