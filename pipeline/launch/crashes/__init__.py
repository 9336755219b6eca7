"""Samples that end the process which decodes them: found after a data worker died, and left out from then on."""
