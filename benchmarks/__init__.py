"""What the figures in the docs come from: each benchmark is paired with its peer in the same run."""
