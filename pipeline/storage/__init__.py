"""Addresses of what lies on disks and object stores, read in one place."""
