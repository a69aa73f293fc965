"""De-identification by the Basic Application Level Confidentiality Profile of DICOM PS3.15 Annex E.

Raises MissingExtraError on import if pydicom is not installed.
"""

import secure_media_processor.medical.dicom  # noqa: F401 - says so if pydicom is missing, before anything here needs it
