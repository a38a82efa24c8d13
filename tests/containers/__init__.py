"""Tests of the image, run by `make containers`: they need root, podman and debootstrap."""
