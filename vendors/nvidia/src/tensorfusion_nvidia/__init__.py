"""TensorFusion vendor backend: NVIDIA GPUs through NVML."""
