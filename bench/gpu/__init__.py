"""Training measured on an NVIDIA GPU: `cd bench && python -m gpu.training`."""
