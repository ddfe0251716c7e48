"""blemish: zero-shot visual anomaly detection and segmentation with CLIP."""

__version__ = "0.1.0"
