"""Pure functions of tensors and numbers: noise and targets, loss weights, guidance, schedules, EMA, masks, optimizers."""
