"""The parts of the verifier. None of them knows the engine: what one gets wrong, the other must not get wrong the same way."""
