"""A training run on disk: the session, the job, the run folder, callbacks and plots."""
