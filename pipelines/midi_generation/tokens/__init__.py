"""What the network reads and writes: scores as lines of tokens, and the lines that teach and ask for each task."""
