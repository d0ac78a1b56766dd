"""Open Inference Protocol v2, and the V1 predict form: bytes to messages and back, nothing else."""
