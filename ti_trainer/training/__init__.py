"""The trainer: objective, schedule, step, loop, run folder and observers."""
