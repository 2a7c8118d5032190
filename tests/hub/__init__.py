"""Tests of what is read from a model hub, against a hub on the loopback address."""
