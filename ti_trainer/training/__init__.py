"""The training loop: trainer, update, trainable embedding, pixel loss, evaluation, selection, distributed training."""
