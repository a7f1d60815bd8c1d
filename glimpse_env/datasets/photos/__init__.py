"""Datasets of photographs."""
