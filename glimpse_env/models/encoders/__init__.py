"""Encoders: inputs to annotation vectors."""
