"""From a raw volume to one that a model or a person can use: bias field, noise, contrast, intensities.

Raises MissingExtraError on import if a part of the extra `medical` is not installed.
"""

from importlib.util import find_spec

from secure_media_processor.errors import MissingExtraError

for _name in ("numpy", "scipy", "nibabel", "SimpleITK", "pydicom"):
    if find_spec(_name) is None:
        raise MissingExtraError(f"{_name} is not installed", hint="pip install 'secure-media-processor[medical]'")
