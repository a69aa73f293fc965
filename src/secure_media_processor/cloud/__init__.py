"""Stores for encrypted objects, one behind another's back: each is trusted with ciphertext and with nothing else."""
