"""What every part of the product stands on: encryption, keys, files, settings, audit, rate limits."""
