"""Stable Diffusion as the AUTOMATIC1111 WebUI has it loaded."""
