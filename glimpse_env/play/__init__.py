"""A person at the environment."""
