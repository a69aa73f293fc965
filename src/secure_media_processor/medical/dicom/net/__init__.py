"""Exchanging DICOM objects with an archive (PACS): by DIMSE (PS3.7) and by DICOMweb (PS3.18).

Both kinds of server have the methods of `PacsServer`; `fetch` and `send` in transfer.py work with either. Whatever a server
says is checked before it is used: sizes, UIDs, and whether an object is the one that was asked for.
"""
