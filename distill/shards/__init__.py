"""Records over a grid of (clip, view) on disk: whole or not there, done by one job at a time, never silently wrong."""
