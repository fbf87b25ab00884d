"""What stands on a backend's child for run(): a command from its start to its result."""
