"""What operators look at: regions, replicas, ranks, and rates between two readings of them."""
