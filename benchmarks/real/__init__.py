"""Training on real pretrained parts, which packages of PyPI and npm hold; no model hub is needed. Run `make real`."""
