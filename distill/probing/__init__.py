"""What latents are worth to classical classifiers."""
