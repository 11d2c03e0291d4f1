"""Training: tasks (`task`), the loop (`trainer`), checkpoints, data. `genkit train` is its command."""
