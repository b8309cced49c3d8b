"""The region's controller: wanted state, placement, health, and the directory that routers watch. Reaches no torch."""
