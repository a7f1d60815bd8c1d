"""What every room may use: vocabulary, checks and files."""
