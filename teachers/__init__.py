"""One file per teacher family; each has Options, build, fingerprint and wants."""
