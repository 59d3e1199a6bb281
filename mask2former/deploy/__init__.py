"""Using trained models: arrays, pictures and videos in, results and drawings out. Nothing else imports this package."""
