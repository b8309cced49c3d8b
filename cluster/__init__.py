"""Everything that runs: router, controller, engine, workers. Knows processes and networks; tensors live in `model`."""
