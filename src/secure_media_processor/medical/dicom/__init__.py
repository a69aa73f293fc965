"""Reading DICOM files as they come, without trusting any of them.

Raises MissingExtraError on import if pydicom is not installed.
"""

try:
    import pydicom  # noqa: F401 - only to say so here, once and in our own words, if it is missing
except ImportError as error:
    from secure_media_processor.errors import MissingExtraError

    raise MissingExtraError("pydicom is not installed", hint="pip install 'secure-media-processor[dicom]'") from error
