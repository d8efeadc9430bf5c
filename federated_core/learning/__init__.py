"""Mathematics: arrays in, arrays out. Knows no message, clock, disk or network."""
