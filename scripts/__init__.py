"""Programs around the product: demo, checks, benchmarks."""
