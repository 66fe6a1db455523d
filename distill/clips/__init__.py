"""From a file on disk to a uint8 batch."""
