"""U-Nets for segmentation: networks, losses, what is measured of a result, and what is done to it afterwards.

Raises MissingExtraError on import if numpy, scipy, nibabel or pydicom is not installed. Networks and losses need torch besides.
"""

from importlib.util import find_spec

from secure_media_processor.errors import MissingExtraError

for _name in ("numpy", "scipy", "nibabel", "pydicom"):
    if find_spec(_name) is None:
        raise MissingExtraError(f"{_name} is not installed", hint="pip install 'secure-media-processor[medical]'")
