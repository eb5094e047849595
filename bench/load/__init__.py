"""Loads on a real server: the rows L01 to L11 of the catalogue, one file each."""
