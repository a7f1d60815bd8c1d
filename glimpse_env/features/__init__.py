"""Annotation vectors, computed once."""
