"""distill: large video models become small ones. Imports nothing: every job imports what it needs."""
