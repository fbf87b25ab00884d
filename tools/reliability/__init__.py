"""What tools/faults.py, tools/soak.py and tools/mutants.py have in common."""
