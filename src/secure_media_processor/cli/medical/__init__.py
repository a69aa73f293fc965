"""Commands on medical images, one module each."""
