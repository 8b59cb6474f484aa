"""TensorFusion vendor backend: Acme accelerators."""
