"""Who calls, and what they may do. Knows keys, tokens and policies; no models and no streams."""
