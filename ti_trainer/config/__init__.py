"""Every option, declared once: training, preprocessing, presets, trials."""
