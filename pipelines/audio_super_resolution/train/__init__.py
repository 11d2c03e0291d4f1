"""The training of the networks: data, losses, and one task for each architecture."""
