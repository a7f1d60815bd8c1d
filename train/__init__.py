"""Commands: ``python -m train.<name>``."""
