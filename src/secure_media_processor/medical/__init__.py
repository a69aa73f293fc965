"""Medical images: reading DICOM and taking the patient out of it."""
