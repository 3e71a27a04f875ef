"""Less GPU memory and more speed for any host: memory plans, gradient checkpointing, weight streaming, torch.compile."""
