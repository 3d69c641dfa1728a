"""What benchmarks are made of: reference implementations, material, simulations, comparisons."""
