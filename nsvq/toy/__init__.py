"""The drift laboratory: quantizers on latents whose distribution moves, in seconds on a CPU."""
