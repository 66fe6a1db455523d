"""From a trained student to a file that runs on a device."""
