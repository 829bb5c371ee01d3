"""The zoo: well-known architectures with random weights, small enough that all of them can be tried."""
