"""The captioner's networks."""
