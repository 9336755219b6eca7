"""A run on a Ray cluster: the cluster looked at, Ray Data and Ray Train started, stops and failures carried over."""
