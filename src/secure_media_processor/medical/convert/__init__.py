"""DICOM into formats that other programs read, PNG and NIfTI, and masks into DICOM segmentations.

Raises MissingExtraError on import if a part of the extra `medical` is not installed; dcm2niix alone may be missing.
"""

from importlib.util import find_spec

from secure_media_processor.errors import MissingExtraError

for _name in ("pydicom", "numpy", "PIL", "nibabel", "highdicom", "pylibjpeg", "jpeg_ls", "scipy"):
    if find_spec(_name) is None:
        raise MissingExtraError(f"{_name} is not installed", hint="pip install 'secure-media-processor[medical]'")
