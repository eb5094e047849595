"""Training and generation measured on an NVIDIA GPU: `cd bench && python -m gpu.training`, `python -m gpu.generate`."""
