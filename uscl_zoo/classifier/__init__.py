"""What a fine-tuned model says of files, and why."""
