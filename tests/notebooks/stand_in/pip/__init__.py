"""Stands in for pip where a notebook installs."""
