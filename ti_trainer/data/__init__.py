"""From a folder of images to batches: images, captions, prompts, latents, order."""
