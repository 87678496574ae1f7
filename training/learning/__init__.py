"""What pretraining and fine-tuning share: frames, keyed draws, settings, devices, runs."""
