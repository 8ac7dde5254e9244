"""Seeing inside: what the network reads, writes and decides, measured at its sites."""
