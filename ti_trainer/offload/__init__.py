"""Saving GPU memory and time in any host: memory plans, gradient checkpointing, weight offloading, torch.compile."""
