"""TensorFusion vendor backend: simulated GPUs from the hardware catalogue."""
