"""The DICOM network, the only place that may open a socket to another host."""
