"""`python -m jobs`: the ray-llava command for interpreters whose scripts folder is not on the path."""

from jobs.cli import main

main()
