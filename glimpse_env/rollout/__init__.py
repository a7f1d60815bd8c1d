"""B episodes in step."""
