"""Benchmarks: the quantizers' time and memory beside their peers', and the training step's time with each quantizer."""
