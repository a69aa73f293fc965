"""Reading DICOM files as they come, without trusting any of them."""
