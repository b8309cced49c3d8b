"""What `make` runs besides well-known tools. Never installed, never imported by the system."""
