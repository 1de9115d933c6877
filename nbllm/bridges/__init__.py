"""Ways out to other systems, one module each, which loads nothing heavy before it is used."""
