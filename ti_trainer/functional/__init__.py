"""Pure functions of tensors and numbers: noise and targets, guidance, schedules, EMA, mask weights."""
