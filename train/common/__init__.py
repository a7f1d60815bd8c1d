"""What the commands share: options, the end of a command, run directories, trainers, several processes, tables."""
