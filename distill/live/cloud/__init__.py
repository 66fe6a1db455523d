"""The service that takes latents: it classifies them, keeps who saw what when, and shows it."""
