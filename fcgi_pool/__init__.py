"""Sockets that programs are served from: addresses and listeners."""
