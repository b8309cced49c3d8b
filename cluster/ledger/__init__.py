"""Usage that survives: what was reserved, accepted and settled, in a database. Knows no models and no streams."""
