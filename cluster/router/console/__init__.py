"""The operators' page: one HTML file and its script, and the figures that they ask for."""
