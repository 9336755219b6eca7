"""Addresses of files and objects, on disks and object stores, read in one place."""
