"""What may be installed on a device: the manifest of a release and the rules for accepting it, without I/O."""
