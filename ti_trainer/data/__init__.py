"""From a folder of pictures to batches: images, captions, prompts, latents, order."""
