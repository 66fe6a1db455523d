"""Actions in a running picture: from a camera, a file or a link to predictions, as they happen."""
