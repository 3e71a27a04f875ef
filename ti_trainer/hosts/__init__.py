"""The programs that the trainer runs in: `diffusers` is the command line and the standalone page, `webui` AUTOMATIC1111."""
