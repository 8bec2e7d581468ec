"""What operators write: durations and quantities, flags, files and objects. Each is read in one way everywhere."""
